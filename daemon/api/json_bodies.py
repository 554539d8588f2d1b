"""Decoding of request bodies into typed requests, encoding of answers as strict JSON.

Text passes in both directions without loss: bytes of a log line that are not UTF-8 are lone surrogates in
Python (PEP 383) and ``\\udc80``..``\\udcff`` escapes in JSON, and a client may send them back.
"""

import json
import math
from typing import Any, Literal, NoReturn, TypeVar

import msgspec

from daemon.control.control_interface import ControlError

MAX_BODY_BYTES = 1024 * 1024
MAX_BATCH_LINES = 10_000
MAX_NOTE_BYTES = 1000


class DetectRequest(msgspec.Struct):
    log_line: str
    session_id: str | None = None


class BatchRequest(msgspec.Struct):
    log_lines: list[str]


class FeedbackRequest(msgspec.Struct):
    id: str
    answer: Literal["normal", "anomaly"]
    note: str = ""


T = TypeVar("T")


def decode_body(raw: bytes, kind: type[T]) -> T:
    """Decode JSON as a `kind`, whatever the content type. Raises `ControlError` 400 with the reason."""
    if not raw.strip():
        raise ControlError(400, "no_body", "this request needs a JSON body")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_json_constant)
    except RecursionError:
        raise ControlError(400, "bad_json", "the body is nested too deeply") from None
    except UnicodeDecodeError as exc:
        raise ControlError(400, "bad_json", f"the body is not UTF-8 at byte {exc.start}") from None
    except ValueError as exc:  # JSONDecodeError, a constant, an integer of thousands of digits
        raise ControlError(400, "bad_json", f"the body is not JSON: {exc}") from None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as exc:
        raise ControlError(400, "bad_request", str(exc)) from None
    except UnicodeEncodeError as exc:  # msgspec, where one of several words is wanted
        raise ControlError(400, "bad_text", f"a value holds a lone surrogate at character {exc.start}") from None


def line_bytes(text: str) -> bytes:
    """The bytes of one log line; a newline at its end is dropped. Raises `ControlError` 400."""
    try:
        line = text.removesuffix("\n").encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise ControlError(400, "bad_text", f"a log line holds a lone surrogate at character {exc.start}") from None
    if b"\n" in line:
        raise ControlError(400, "bad_request", "a log line holds a newline; send the lines one by one")
    return line


def note_text(text: str) -> str:
    """An operator's note, if it can be stored. Raises `ControlError` 400."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise ControlError(400, "bad_text", f"the note holds a lone surrogate at character {exc.start}") from None
    if size > MAX_NOTE_BYTES:
        raise ControlError(400, "bad_request", f"a note is at most {MAX_NOTE_BYTES} bytes")
    return text


def encode_answer(value: Any) -> bytes:
    """Strict JSON in ASCII: no NaN, no infinity (both become null), control characters escaped."""
    try:
        return _dump_strict_json(value)
    except ValueError:
        return _dump_strict_json(_with_null_for_nan(value))


def _dump_strict_json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def _with_null_for_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _with_null_for_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_null_for_nan(item) for item in value]
    return value


def _refuse_json_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
