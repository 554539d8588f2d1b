"""What an earlier process wrote into alerts.jsonl and verdicts.jsonl: the alerts actor continues after it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.alerts import Alerts, Outlet, Record
from actors.record_ids import record_id_key
from persistence.jsonl import JsonlWriter, last_records
from persistence.record_space import KEEP_FREE_BYTES

# Each file of records, and how much it leaves free on the disk: verdicts give way before alerts, those before lines.
OUTLETS = {"alerts": KEEP_FREE_BYTES, "verdicts": 2 * KEEP_FREE_BYTES}
_TAIL_BYTES = 1 << 20


def resumed_alerts(writers: Sequence[JsonlWriter], write_all: bool) -> tuple[Alerts, int]:
    """The alerts actor's part over the `writers` of OUTLETS, and the last line that a record was written about.

    Blocking. Raises OSError.
    """
    found = [last_record_ids(writer) for writer in writers]
    last = [max(filter(None, ids), key=record_id_key, default=None) for ids in found]
    alerts_file, verdicts_file = (
        Outlet(f"{name}.jsonl", writer, last_id) for name, writer, last_id in zip(OUTLETS, writers, last, strict=True)
    )
    alerts = Alerts(alerts_file, verdicts_file, seq=0, write_all=write_all, recent=_last_records(writers[0].path))
    # The mark has a checksum, so it counts; the file's own last record only where there is no mark.
    return alerts, max(record_id_key(mark or own or "0")[0] for mark, own in found)


def last_record_ids(writer: JsonlWriter) -> tuple[str | None, str | None]:
    """The last id by the mark beside the file, and by the file's last record.

    A kill between two writes leaves the mark behind; a file that was rotated or damaged is behind the mark.
    """
    record = None if writer.last is None else _parsed_record(writer.last)
    return writer.last_id, None if record is None else str(record["id"])


def _last_records(path: Path) -> list[Record]:
    """The records in the last megabyte of a file of records and its parts; what is damaged there is left out."""
    lines = last_records(path, _TAIL_BYTES)
    return [record for line in lines if (record := _parsed_record(line)) is not None][::-1]


def _parsed_record(line: bytes) -> Record | None:
    """None for what is no record of ours."""
    try:
        record = msgspec.json.decode(line, type=dict[str, Any])
        record_id_key(record["id"])
    except (ValueError, KeyError, AttributeError):
        return None
    return record
