"""Which alert an answer is about: its record in alerts.jsonl, and the cause that a record names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from actors.record_ids import Key, counted_alert, record_id_key
from daemon.control.control_interface import ControlError
from detection.causes import fingerprints as causes
from detection.templates.table import MAX_ID, OTHER
from persistence.jsonl import records_from

COUNTING = b'"stands_for":'  # in every counting record, and in no other: in a text its quotes are escaped


@dataclass(frozen=True, slots=True)
class AnsweredAlert:
    """The cause of an alert, as `detection.causes.fingerprints` has it, the template that it is about (0: none), and
    the shapes that "normal" holds for, too."""

    cause: int
    kind: int
    what: str
    template: int
    shapes: tuple[int, ...]


class _Head(msgspec.Struct):
    id: str


_head_decoder = msgspec.json.Decoder(_Head)


def find_record(path: Path, alert_id: str, check: Callable[[], None] = lambda: None) -> Mapping[str, Any]:
    """The record of alert `alert_id` in the file at `path` and its parts, or the part about it of the counting record
    that stands for it.

    Ids ascend, so a record is found by bisection; a counting record comes at any distance after the alerts that it
    stands for, so what follows is read, too, and of that only counting records are decoded.

    Blocking; `check` is called often, and ends the search by what it raises. Raises `ControlError` 404: "not_found"
    where there never was such an alert, "gone" where its record may have been rotated away.
    """
    wanted = record_id_key(alert_id)
    older = False

    def is_before(line: bytes) -> bool | None:
        nonlocal older
        try:
            before = record_id_key(_head_decoder.decode(line).id) < wanted
        except ValueError:
            return None  # damaged; its neighbours are not
        older |= before
        return before

    try:
        for line in records_from(path, is_before, COUNTING, check):
            found = _record_about(line, wanted, alert_id)
            if found is not None:
                return found
            if len(wanted) > 2:
                break  # of a counting record, which nothing stands for
    except FileNotFoundError:
        pass  # rotated away, and nothing was flagged since
    except OSError as exc:
        raise ControlError(503, "not_read", f"{path.name} cannot be read: {exc.strerror}") from exc
    if older:
        raise ControlError(404, "not_found", f"no alert has the id {alert_id}")
    raise ControlError(
        404,
        "gone",
        f"alert {alert_id} is neither among the recent ones nor in {path.name}: its record was rotated away, if there "
        "ever was one; answer a newer alert of the same kind",
    )


def _record_about(line: bytes, wanted: Key, alert_id: str) -> Mapping[str, Any] | None:
    try:
        record: dict[str, Any] = msgspec.json.decode(line)
        return record if record_id_key(record["id"]) == wanted else counted_alert(record, alert_id)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # damaged


def answered_alert(record: Mapping[str, Any]) -> AnsweredAlert:
    """What the alert of `record` is about. Raises `ControlError` 409 for a record that does not say."""
    if "stands_for" in record:
        raise ControlError(
            409,
            "counting_record",
            f"{record['id']} stands for {record['stands_for']} alerts, from {record['first_id']} to "
            f"{record['last_id']}: answer one of them",
        )
    try:
        kind = causes.KINDS.index(record["cause_kind"])
        template, shapes = record["cause_template"], record.get("cause_shapes", [])
        return AnsweredAlert(
            causes.cause_from_text(str(record["cause"])),
            kind,
            str(record["what"]),
            _template_text(template),
            tuple(causes.cause_from_text(str(each)) for each in shapes),
        )
    except (KeyError, ValueError):
        raise ControlError(
            409,
            "no_cause",
            f"the record of alert {record['id']} names no cause, an earlier version wrote it; answer a newer alert",
        ) from None


def _template_text(given: object) -> int:
    """As the table of templates has it. Raises ValueError."""
    if given is None:
        return OTHER
    if not isinstance(given, int) or not OTHER <= given <= MAX_ID:
        raise ValueError(f"{given!r} is not the id of a template")
    return given
