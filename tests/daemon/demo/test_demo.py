import hashlib
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.demo import __main__ as demo
from daemon.demo.__main__ import DemoError, free_port, run_demonstration, runtime_directory, sample_lines
from daemon.demo.demo_text import flagged_record_lines, remembered_state_lines, training_progress_text

FAKE = Path(__file__).with_name("fake_vigild.py")

# Stands for `vigilctl send --socket SOCKET FILE`: exit 0 once the daemon has closed the connection.
SEND = """
import socket, sys
_, command, option, path, file = sys.argv
assert (command, option) == ("send", "--socket")
with socket.socket(socket.AF_UNIX) as log:
    log.connect(path)
    log.sendall(open(file, "rb").read())
    log.shutdown(socket.SHUT_WR)
    sys.exit(log.recv(1) != b"")
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs named vigild and vigilctl that do what the demonstration needs of them."""
    for name, code in (("vigild", FAKE.read_text()), ("vigilctl", SEND)):
        program = tmp_path / name
        program.write_text(f"#!{sys.executable}\n{code}")
        program.chmod(0o755)
    monkeypatch.setattr(demo, "_installed_program", lambda name: str(tmp_path / name))
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def tell(directory: Path) -> str:
    """The output of the demonstration, with a Ctrl-C once it has printed how to go on."""
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "Ctrl-C stops" in text:
            raise KeyboardInterrupt

    run_demonstration(directory, say)
    return "\n".join(said)


@pytest.mark.slow
def test_the_first_run_teaches_and_the_second_one_remembers(programs: None, tmp_path: Path) -> None:
    first = tell(tmp_path / "run")
    assert "knows nothing yet" in first and "after 4,000 lines; the default is 50,000" in first
    assert first.index("lines 1 to 6,000") < first.index("training 20 %") < first.index("Trained:")
    assert first.index("Trained:") < first.index("lines 6,001 to 10,000")
    assert "attack   sql_injection (sqli-quote, high); transformer p=0.001" in first
    assert "10,000 lines, 99 templates" in first
    assert re.search(r"^Page +http://127\.0\.0\.1:\d+/#token=the-token$", first, re.MULTILINE)
    assert (tmp_path / "run" / "state" / "lines").read_text() == "10000"

    second = tell(tmp_path / "run")
    assert "Sending" not in second
    assert "remembers 10,000 lines (recovery: full)" in second
    assert "bit for bit the one that was saved" in second
    assert "100 of 100 lines queried then and now got exactly the same score" in second
    assert (tmp_path / "run" / "state" / "lines").read_text() == "10000"


def test_a_run_that_was_cut_short_goes_on_where_the_daemon_is(programs: None, tmp_path: Path) -> None:
    (tmp_path / "run" / "state").mkdir(parents=True)
    (tmp_path / "run" / "state" / "lines").write_text("1500")
    said = tell(tmp_path / "run")
    assert "remembers 1,500 lines" in said and "lines 1,501 to 6,000" in said
    assert (tmp_path / "run" / "state" / "lines").read_text() == "10000"


def test_a_daemon_that_does_not_start_is_quoted(
    programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VIGILD", "refuse")
    with pytest.raises(DemoError, match=r"status 1; .*says:\nvigild: the settings are wrong"):
        tell(tmp_path / "run")


def test_the_sample_is_the_published_one() -> None:
    lines = sample_lines()
    assert len(lines) == 10_000 and all(line.endswith(b"\n") for line in lines)
    text = b"".join(lines)
    assert hashlib.sha256(text).hexdigest() == "fabe9cd828b06695c58799821b78b4d8e259c11aaaba40450cd6a0842828c997"


def test_sockets_move_when_the_checkout_lies_too_deep(tmp_path: Path) -> None:
    assert runtime_directory(Path("/home/me/vigild/.run")) == Path("/home/me/vigild/.run")
    deep, other = (tmp_path / (letter * 90) / ".run" for letter in "ab")
    assert len(str(runtime_directory(deep) / "admin.sock")) <= 107
    assert runtime_directory(deep) == runtime_directory(deep) != runtime_directory(other)


def test_a_taken_port_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        taken = [each.getsockname()[1] for each in (one, two)]
        two.close()
        assert free_port(taken) == taken[1]
        with pytest.raises(DemoError, match="are taken"):
            free_port(taken[:1])


def test_a_changed_state_is_not_called_the_same() -> None:
    status = {"logs_processed": 10, "recovery": {"tier": "partial"}, "state_digest": "b"}
    said = "\n".join(remembered_state_lines(status, {"digest": "a", "same": 41, "answers": [0] * 100}))
    assert "bit for bit" not in said and "41 of 100" in said and "partial" in said


def test_progress_is_printed_in_steps_of_ten_per_cent() -> None:
    assert training_progress_text({"fraction": 0.39}) == training_progress_text({"percent": 31.0}) == "training 30 %"
    assert training_progress_text({"error": "killed", "fraction": 0.1}).endswith("tried again: killed")
    assert training_progress_text({}) == "training 0 %"


def test_hostile_lines_cannot_write_to_the_terminal() -> None:
    record = {"line": 1, "verdict": "anomaly", "members": {}, "closed": True, "template": ""}
    said = "\n".join(flagged_record_lines([record | {"text": "\x1b]0;x\x07\udcff" + "é" * 500}]))
    assert said.isascii() and "\x1b" not in said and "\x07" not in said
    assert max(map(len, said.splitlines())) < 150
