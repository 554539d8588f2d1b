"""Which alert an answer is about: its record in alerts.jsonl, and the cause that a record names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from actors.record_ids import counted_alert, record_id_key
from daemon.control.control_interface import ControlError
from detection.causes import fingerprints as causes
from detection.templates.table import MAX_ID, OTHER
from persistence.jsonl import last_records

SEARCHED_BYTES = 1 << 30  # of alerts.jsonl and its parts, from the end: about a million records, some seconds


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
    stands_for: int = 0


_head_decoder = msgspec.json.Decoder(_Head)


def find_record(path: Path, alert_id: str) -> Mapping[str, Any]:
    """The record of alert `alert_id` in the file at `path` and its parts, searched from the end, where ids are highest;
    or the part about it of the counting record that stands for it.

    Blocking. Raises `ControlError` 404: "not_found" where there never was such an alert, "gone" where its record
    may have been rotated away.
    """
    wanted = record_id_key(alert_id)
    try:
        for line in last_records(path, SEARCHED_BYTES):
            try:
                head = _head_decoder.decode(line)
                key = record_id_key(head.id)
                # It comes after all alerts that it stands for, so none with a lower id than the wanted one has it.
                counted = counted_alert(msgspec.json.decode(line), alert_id) if head.stands_for else None
            except (ValueError, KeyError):
                continue  # damaged; its neighbours are not
            if counted is not None:
                return counted
            if key == wanted:
                record: dict[str, Any] = msgspec.json.decode(line)
                return record
            if key < wanted:
                raise ControlError(404, "not_found", f"no alert has the id {alert_id}")
    except FileNotFoundError:
        pass  # rotated away, and nothing was flagged since
    except OSError as exc:
        raise ControlError(503, "not_read", f"{path.name} cannot be read: {exc.strerror}") from exc
    raise ControlError(
        404,
        "gone",
        f"alert {alert_id} is neither among the recent ones nor in {path.name}: its record was rotated away, if there "
        "ever was one; answer a newer alert of the same kind",
    )


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
