"""Ids of records, and which alerts a counting record stands for.

An alert's id is "<line>", or "<line>.<k>" for the k-th session closed at that line; a counting record's is
"<line>.<k>.<n>", `n` being its number since the state began. Ids ascend in the order of the records, as keys.
"""

from collections.abc import Mapping
from typing import Any

Key = tuple[int, ...]
NO_KEY: Key = (0, 0)


def record_id_key(record_id: str) -> Key:
    """The key by which ids are ordered: "123", "123.1", "123.1.7", "123.10", "124". Raises ValueError."""
    line, *rest = record_id.split(".")
    if len(rest) > 2:
        raise ValueError(f"{record_id[:40]!r} is no id")
    return (int(line), *map(int, rest)) if rest else (int(line), 0)


def record_id_of_key(key: Key) -> str:
    """The inverse of `record_id_key`."""
    return ".".join(map(str, key if key[1:] != (0,) else key[:1]))


def alert_count_of_record(record: Mapping[str, Any]) -> int:
    """How many alerts it is the record of."""
    number = record.get("stands_for", 1)
    return number if isinstance(number, int) else 1


def counted_alert(record: Mapping[str, Any], alert_id: str) -> dict[str, Any] | None:
    """The part of a counting record about this alert, as a record of the alert; None if the record does not stand for
    it. `counted_in` is the id of the counting record, None while it is under way."""
    wanted = record_id_key(alert_id)
    for group in record.get("alerts", ()):
        if _id_runs_contain(group["ids"], wanted):
            about = {name: value for name, value in group.items() if name != "ids"}
            kept = {name: record[name] for name in _SHARED}
            found = {
                **kept,
                "id": record_id_of_key(wanted),
                "line": wanted[0],
                "first_line": wanted[0],
                "last_line": wanted[0],
            }
            return {**found, "time": None, "closed": wanted[1] > 0, **about, "counted_in": record["id"]}
    return None


_SHARED = (
    *("session", "template_id", "template", "score", "p", "flagged", "members", "attack_types", "rules"),
    *("model_generation", "text", "incident", "digest", "opens"),
)


def _id_runs_contain(ids: str, wanted: Key) -> bool:
    """Whether `wanted` is in `ids`, runs of ids of alerts: "12-20,25.1-25.4,31"."""
    for run in ids.split(","):
        first, _, last = run.partition("-")
        low = record_id_key(first)
        # A run is either of lines, or of sessions that closed at one line.
        if (
            low <= wanted <= (record_id_key(last) if last else low)
            and len(wanted) == 2
            and (wanted[1] > 0) == (low[1] > 0)
        ):
            return True
    return False
