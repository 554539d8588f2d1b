"""The texts of the demonstration, as lines for a terminal. The only I/O is reading the sizes of files."""

import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.record_ids import alert_count_of_record

SHOWN_RECORDS = 12
SHOWN_CHARACTERS = 140


def remembered_state_lines(status: Mapping[str, Any], note: Mapping[str, Any] | None) -> Iterator[str]:
    """The first lines of a run on a state that exists. `note` is that of `compare_noted_judgements`."""
    known, tier = status["logs_processed"], status["recovery"]["tier"]
    yield f"It remembers {known:,} lines (recovery: {tier}); nothing of that is sent again."
    if note is None:
        return
    if note["digest"] == status["state_digest"]:
        yield f"The state is bit for bit the one that was saved: {note['digest']}"
    else:
        yield "The state is not the one noted at the last stop; something came in after that."
    yield f"{note['same']} of {len(note['answers'])} lines queried then and now got exactly the same score."


def training_progress_text(training: Mapping[str, Any]) -> str:
    """Progress in steps of ten per cent, readable in a file as on a terminal."""
    if training.get("error"):
        return f"training failed, it will be tried again: {training['error']}"
    percent = training.get("percent")
    if percent is None:
        percent = 100.0 * (training.get("fraction") or 0.0)
    return f"training {int(percent // 10) * 10} %"


def flagged_record_lines(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The last few flagged records, each with the reason; control characters escaped, lines cut."""
    flagged = sum(alert_count_of_record(record) for record in records)
    beyond = f", of which the last {SHOWN_RECORDS} in full:" if flagged > SHOWN_RECORDS else ""
    yield f"\nFlagged so far: {flagged}{beyond}"
    for record in [record for record in records if "stands_for" not in record][-SHOWN_RECORDS:]:
        yield f"  line {record['line']:>6,}  {record['verdict']:<8} {_flagged_because(record)}"
        safe = str(record["text"] or record["template"]).encode("unicode_escape").decode("ascii")
        yield f"      {safe if len(safe) <= SHOWN_CHARACTERS else safe[: SHOWN_CHARACTERS - 3] + '...'}"


def _flagged_because(record: Mapping[str, Any]) -> str:
    rules = [f"{rule['type']} ({rule['name']}, {rule['severity']})" for rule in record.get("rules") or ()]
    ps = {name: member["p"] for name, member in record["members"].items() if member["p"] is not None}
    members = [f"{name} p={ps[name]:.2g}" for name in sorted(ps, key=lambda name: ps[name])]
    closing = ["the session as it ended"] if record["closed"] else []
    return "; ".join(rules + closing + members)


def state_size_lines(status: Mapping[str, Any], state: Path) -> Iterator[str]:
    """Size and digest of the state."""
    files = [path.stat() for path in state.rglob("*") if path.is_file()]
    size = sum(each.st_size for each in files) / 1e6
    yield (
        f"\nIts memory now: {status['logs_processed']:,} lines, {status['vocabulary_size']:,} templates, "
        f"{size:.1f} MB in {len(files)} files.\nDigest of the state: {status['state_digest']}"
    )


def commands_to_try(runtime: Path, port: int, token: str | None) -> str:
    """The commands to try on the running daemon; the page gets `token` in its address."""
    socket_path, admin = runtime / "log.sock", runtime / "admin.sock"
    fragment = f"#token={token}" if token else ""
    return f"""
Page          http://127.0.0.1:{port}/{fragment}
Send lines    vigilctl send --socket {socket_path} FILE
              cat FILE | socat - UNIX-CONNECT:{socket_path}
Ask           vigilctl --admin unix:{admin} status
              vigilctl --admin unix:{admin} detect 'GET /index.php?id=1%27+OR+%271%27=%271 HTTP/1.1'
vigilctl is in {sysconfig.get_path("scripts")}. Ctrl-C stops; the next run goes on from here."""
