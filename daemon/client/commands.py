"""Commands of vigilctl: each sends requests, prints the answer, and returns the exit status."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from daemon.client.admin_client import Admin, Failure, UsageError, read_token
from daemon.client.send_command import log_sockets, send_lines
from daemon.client.text.formatting import Style, print_lines, printable, show_answer, size_text
from daemon.client.text.judgement_text import is_announced_by_tail, judgement_lines, judgement_row, record_row
from daemon.client.text.status_text import status_lines
from daemon.client.text.tables import snapshot_rows

BATCH_LINES = 500
BATCH_BYTES = 128 * 1024  # of raw lines; as JSON escapes they grow sixfold at worst, within 1 MiB


def status_command(admin: Admin, as_json: bool) -> int:
    answer = admin.get("/status").body
    show_answer(answer, as_json, lambda: print_lines(status_lines(answer, Style(sys.stdout))))
    return 0


def checkpoint_command(admin: Admin, as_json: bool) -> int:
    answer = admin.post("/checkpoint").body
    show_answer(
        answer,
        as_json,
        lambda: print(
            f"saved through line {answer['line']:,} in {answer['seconds']:.2f} s: "
            f"{printable(answer['path'])} ({size_text(answer['bytes'])}), digest {printable(answer['digest'])}"
        ),
    )
    return 0


def flush_command(admin: Admin, as_json: bool) -> int:
    answer = admin.post("/flush").body
    facts = ", ".join(f"{printable(name).replace('_', ' ')} {value}" for name, value in answer.items())
    show_answer(answer, as_json, lambda: print(f"every open session is closed: {facts}"))
    return 0


def page_command(admin: Admin, as_json: bool) -> int:
    """Print the address of the daemon's page, with the token in it by which the page may answer alerts.

    The token is in the fragment, which a browser keeps to itself: it is in no request and in no log.
    """
    places = admin.get("/status").body["places"]
    address = _page_address(places["listening"])
    if places.get("token_of") == "settings":
        note = f"the browser will ask for a name, which may be anything, and a password: the token in {places['token']}"
        show_answer({"address": address, "token_file": places["token"]}, as_json, lambda: print(address))
        print(f"vigilctl: {printable(note)}", file=sys.stderr)
        return 0
    token = read_token(places["token"], {})
    show_answer({"address": f"{address}#token={token}"}, as_json, lambda: print(f"{address}#token={token}"))
    return 0


def _page_address(listening: Sequence[str]) -> str:
    """Of an address on loopback if there is one, else of the first that a browser on this host can reach."""
    ports = [place.rpartition(":") for place in listening if "/" not in place]
    if not ports:
        raise Failure('the daemon has no page: it listens on no port; add "127.0.0.1:8765" to bind in [admin]')
    host, _, port = min(ports, key=lambda each: each[0] not in ("127.0.0.1", "[::1]"))
    return f"http://{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}/"


def detect_command(admin: Admin, as_json: bool, line: str, session: str | None, explain: bool) -> int:
    """Judge `line`, or with "-" the lines of standard input. Standard input gets one row per line; a single line, and
    any line with `explain`, gets the full judgement."""
    style = Style(sys.stdout)
    many = line == "-" and not explain
    for text, answer in _print_judgements(admin, _lines_of_stdin() if line == "-" else iter([line]), session, explain):
        if as_json:
            print(json.dumps(answer))
        elif many:
            print(judgement_row(text, answer, style))
        else:
            print_lines(judgement_lines(text, answer, style))
    return 0


def tail_command(admin: Admin, as_json: bool, everything: bool, every: bool) -> int:
    """Follow the first alert of each incident, and its 10th, 100th, 1,000th...; with `every`, every record."""
    style = Style(sys.stdout)
    for record in admin.events("/events?all=1" if everything else "/events"):
        if not every and not is_announced_by_tail(record):
            continue
        # Flushed one by one: a pipe must get each record as it happens.
        print(json.dumps(record) if as_json else record_row(record, style), flush=True)
    print("vigilctl: the daemon ended the stream", file=sys.stderr)
    return 0


def snapshots_list(admin: Admin, as_json: bool) -> int:
    answer = admin.get("/snapshots").body
    rows = snapshot_rows(answer["snapshots"], Style(sys.stdout), verified=False)
    show_answer(answer, as_json, lambda: print_lines(rows))
    return 0


def snapshots_verify(admin: Admin, as_json: bool) -> int:
    """Fails when a snapshot is damaged."""
    answer = admin.post("/snapshots/verify").body
    rows = snapshot_rows(answer["snapshots"], Style(sys.stdout), verified=True)
    show_answer(answer, as_json, lambda: print_lines(rows))
    damaged = [one["name"] for one in answer["snapshots"] if one.get("error")]
    if damaged:
        raise Failure(f"damaged: {printable(', '.join(damaged))}")
    return 0


def snapshots_pin(admin: Admin, as_json: bool, name: str) -> int:
    answer = admin.post(f"/snapshots/{_snapshot_url_name(name)}/pin").body
    show_answer(answer, as_json, lambda: print(f"{printable(answer['name'])} is kept for ever"))
    return 0


def snapshots_unpin(admin: Admin, as_json: bool, name: str) -> int:
    answer = admin.post(f"/snapshots/{_snapshot_url_name(name)}/unpin").body
    show_answer(answer, as_json, lambda: print(f"{printable(answer['name'])} is kept as long as the others"))
    return 0


def snapshots_restore(admin: Admin, as_json: bool, name: str) -> int:
    answer = admin.post(f"/snapshots/{_snapshot_url_name(name)}/restore").body
    saved = answer["snapshot"]
    show_answer(
        answer,
        as_json,
        lambda: print(
            f"restored {printable(answer['name'])}: its knowledge is in force again from line {answer['line']:,} on; "
            f"saved as {printable(saved['path'])}, digest {printable(saved['digest'])}"
        ),
    )
    return 0


def _snapshot_url_name(name: str) -> str:
    """`name`, or the file name if it is a path, quoted for a URL."""
    return quote(name.rpartition("/")[2], safe="")


def send_file_command(source: str, socket_path: str | None, env: Mapping[str, str], as_json: bool) -> int:
    if source == "-" and sys.stdin.isatty():
        raise UsageError("send reads standard input, which is your terminal; name a FILE or pipe one in")
    sent = send_lines(source, log_sockets(socket_path, env), show=sys.stderr.isatty() and not as_json)
    answer = {"lines": sent.lines, "bytes": sent.bytes, "seconds": round(sent.seconds, 3), "durable": True}
    rate = sent.lines / max(sent.seconds, 1e-3)
    show_answer(
        answer,
        as_json,
        lambda: print(
            f"{sent.lines:,} lines ({size_text(sent.bytes)}) in {sent.seconds:.1f} s, {rate:,.0f} lines/s; all durable"
        ),
    )
    return 0


def _lines_of_stdin() -> Iterator[str]:
    if sys.stdin.isatty():
        raise UsageError("detect reads standard input, which is your terminal; give a LINE or pipe some in")
    for line in sys.stdin.buffer:
        yield line.removesuffix(b"\n").decode("utf-8", "surrogateescape")


def _print_judgements(
    admin: Admin, lines: Iterator[str], session: str | None, explain: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    if session is not None or explain:
        path = "/detect?explain=1" if explain else "/detect"
        for line in lines:
            yield line, admin.post(path, {"log_line": line, "session_id": session}).body
        return
    for batch in _detect_batches(lines):
        answer = admin.post("/detect/batch", {"log_lines": batch}).body
        yield from zip(batch, answer["results"], strict=True)


def _detect_batches(lines: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    length = 0
    for line in lines:
        if batch and (len(batch) == BATCH_LINES or length + len(line) > BATCH_BYTES):
            yield batch
            batch, length = [], 0
        batch.append(line)
        length += len(line)
    if batch:
        yield batch
