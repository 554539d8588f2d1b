"""The operator's commands of vigilctl: feedback, incidents, model generations, training from vouched lines."""

import io
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote

from daemon.client.admin_client import Admin, Failure, UsageError
from daemon.client.send_command import Progress as SendingProgress
from daemon.client.send_command import open_file_or_stdin, sending_progress_bar
from daemon.client.text.formatting import Style, count_text, print_lines, printable, show_answer
from daemon.client.text.tables import answer_rows, incident_rows, model_rows
from daemon.client.unpacking import CHUNK_BYTES, unpacked_chunks
from daemon.file_contents import NotTextError, TextReader

REQUEST_BYTES = 512 * 1024 - CHUNK_BYTES  # of one request; the daemon takes at most 512 KiB
POLL_SECONDS = 0.5
QUIET_POLLS = 6  # polls without a training, none being due, after which none is expected
SUSPICIOUS_SHARE = 0.01  # of vouched lines that match a rule: beyond this it may be the wrong file

ShowProgress = Callable[[float | None, str], None]


def feedback_command(admin: Admin, as_json: bool, alert: str | None, answer: str | None, note: str) -> int:
    """Answer an alert; without `alert`, list the answers in force."""
    if alert is None:
        listed = admin.get("/feedback").body
        show_answer(listed, as_json, lambda: print_lines(answer_rows(listed["feedback"], Style(sys.stdout))))
        return 0
    if answer is None:
        raise UsageError("feedback ID needs an answer: normal, anomaly or undo")
    if answer == "undo":
        if note:
            raise UsageError("undo takes no --note")
        reply = admin.post(f"/feedback/{quote(alert, safe='')}/undo").body
    else:
        reply = admin.post("/feedback", {"id": alert, "answer": answer, "note": note}).body
    show_answer(reply, as_json, lambda: print(_feedback_effect_text(reply)))
    return 0


def _feedback_effect_text(reply: Mapping[str, Any]) -> str:
    what, line = printable(reply.get("what", "")), count_text(reply.get("line"))
    effects = {
        "normal": "normal from now on, and not raised again",
        "anomaly": "an anomaly, not learned from, and frequency does not make it normal",
        "undo": "unanswered again",
    }
    return f"{what}: {effects.get(reply['answer'], printable(reply['answer']))} (after line {line})"


def incidents_command(admin: Admin, as_json: bool, limit: int) -> int:
    answer = admin.get(f"/incidents?limit={limit}").body
    show_answer(answer, as_json, lambda: print_lines(incident_rows(answer["incidents"], Style(sys.stdout))))
    return 0


def models_list(admin: Admin, as_json: bool) -> int:
    answer = admin.get("/models").body
    show_answer(answer, as_json, lambda: print_lines(model_rows(answer["models"], Style(sys.stdout))))
    return 0


def models_rollback(admin: Admin, as_json: bool, generation: int) -> int:
    answer = admin.post(f"/models/{generation}/rollback").body
    show_answer(
        answer,
        as_json,
        lambda: print(f"model generation {answer['generation']} is in force again, after line {answer['line']:,}"),
    )
    return 0


def train_from_command(admin: Admin, as_json: bool, source: str, wait: bool) -> int:
    """Upload a vouched file and, with `wait`, return only when a model trained from it is in force."""
    if source == "-" and sys.stdin.isatty():
        raise UsageError("train-from reads standard input, which is your terminal; name a FILE or pipe one in")
    before = admin.get("/status").body
    shown = sys.stderr.isatty() and not as_json
    taken = _upload_vouched_file(admin, source, shown)
    if not as_json:
        _print_vouched_counts(taken)
    if not wait or not taken["lines"]:
        show_answer(taken, as_json, lambda: None)
        return 0
    with _training_progress_bar() if shown else _no_progress_bar() as show_progress:
        generation = _await_model_generation(admin, before.get("training") or {}, show_progress)
    show_answer(
        {**taken, "generation": generation},
        as_json,
        lambda: print(
            f"model generation {generation} is in force"
            if generation is not None
            else "no training is due yet: the lines wait for the next one"
        ),
    )
    return 0


def _upload_vouched_file(admin: Admin, source: str, shown: bool) -> dict[str, int]:
    """The counts of lines, rule hits and sessions taken. Raises `Failure`; lines taken before that stay taken."""
    path = f"/train-from?source=train-{secrets.token_hex(8)}"
    taken = {"lines": 0, "rule_hits": 0, "sessions": 0}

    begun = False

    def upload_chunk(data: bytes, last: bool) -> None:
        nonlocal begun
        begun = True
        answer = admin.post(f"{path}&last={last:d}", data).body
        for name in taken:
            taken[name] += answer[name]

    def end_upload() -> None:
        """End the upload, or the daemon waits a minute for its rest and refuses other files meanwhile."""
        with suppress(Failure):  # the first error is the one to report; a daemon that is gone needs no end
            if begun:
                upload_chunk(b"", True)

    with open_file_or_stdin(source) as raw:
        with sending_progress_bar(os.fstat(raw.fileno()).st_size or None) if shown else _no_progress_bar() as progress:
            try:
                if raw.seekable():  # a pipe cannot be read twice: there the daemon refuses what is not text as it comes
                    _check_vouched_file(raw, progress)
                for read, data, last in _request_bodies(raw):
                    upload_chunk(data, last)
                    progress(read, taken["lines"], False)
            except KeyboardInterrupt:
                end_upload()
                raise Failure(f"interrupted; at least {taken['lines']:,} lines were taken until then") from None
            except Failure as exc:
                end_upload()
                raise Failure(f"{exc}; {taken['lines']:,} lines were taken until then") from exc
    return taken


def _check_vouched_file(raw: io.BufferedReader, progress: SendingProgress) -> None:
    """Read all of `raw` and go back to where it stands: nothing is to be taken of what turns out to be no text.

    Raises `Failure`.
    """
    start, text = raw.tell(), TextReader()
    try:
        for read, data, last in _request_bodies(raw):
            text.text_in_chunk(data, last)
            progress(read, 0, False)
    except NotTextError as exc:
        raise Failure(str(exc)) from exc
    raw.seek(start)


def _request_bodies(raw: io.BufferedReader) -> Iterator[tuple[int, bytes, bool]]:
    """(bytes read from `raw` so far, the next request's body, whether it is the last), for a file always the same."""
    read, waiting = 0, b""
    for read, chunk in unpacked_chunks(raw):
        waiting += chunk
        if len(waiting) >= REQUEST_BYTES:
            yield read, waiting, False
            waiting = b""
    yield read, waiting, True


def _print_vouched_counts(taken: Mapping[str, int]) -> None:
    lines, hits = taken["lines"], taken["rule_hits"]
    sessions = f"{taken['sessions']:,} {'session' if taken['sessions'] == 1 else 'sessions'}"
    print(f"{lines:,} lines in {sessions} taken" if lines else "no lines in it: nothing to learn")
    if hits:
        print(f"{hits:,} of them matched a rule; the sessions they are in will not be learned from")
    if hits > SUSPICIOUS_SHARE * lines:
        print(f"vigilctl: {hits / lines:.1%} of the lines look like attacks: is this file clean?", file=sys.stderr)


def _await_model_generation(admin: Admin, before: Mapping[str, Any], show_progress: ShowProgress) -> int | None:
    """The generation in force, once it differs from that in `before` (the object "training" of a status); None if no
    training is due.

    Raises `Failure` when the new model is refused, or training fails.
    """
    seen, quiet = False, 0
    try:
        while True:
            status = admin.get("/status").body
            training, under_way = status.get("training") or {}, bool(status.get("training_in_progress"))
            generation = training.get("generation_in_force")
            # A training that began before the upload ends first, with a model or a refusal, and has not learned from
            # the file.
            if (status.get("vouched") or {}).get("waiting", False):
                before = training
            if generation is not None and generation != before.get("generation_in_force"):
                return int(generation)
            if (training.get("refused") or 0) > (before.get("refused") or 0):
                raise Failure(f"the new model was refused, the old one stays: {training.get('refusal')}")
            seen |= under_way
            if seen and not under_way and training.get("error"):
                raise Failure(f"training failed, it will be tried again: {training['error']}")
            quiet = 0 if under_way or training.get("due") else quiet + 1
            if quiet > QUIET_POLLS:
                return None
            show_progress(training.get("percent") if under_way else None, _training_progress_text(training, under_way))
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        raise Failure("interrupted; the lines that were taken are learned from all the same") from None


def _training_progress_text(training: Mapping[str, Any], under_way: bool) -> str:
    if not under_way:
        return "waiting until the training begins"
    return f"epoch {training['epoch']} of {training.get('epochs', '?')}" if training.get("epoch") else "training"


@contextmanager
def _training_progress_bar() -> Iterator[ShowProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=100.0)
        yield lambda percent, text: bar.update(task, completed=percent or 0.0, description=printable(text))


@contextmanager
def _no_progress_bar() -> Iterator[Callable[..., None]]:
    yield lambda *_: None
