"""Misbehaving senders against the real daemon: it stays up and counts, and other senders do not notice."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.running import Vigild, sample_lines, vigild

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vigild]:
    with vigild(tmp_path_factory.mktemp("hostile")) as daemon:
        yield daemon.start()


def processed(daemon: Vigild) -> int:
    line: int = daemon.post("/flush")["line"]  # once everything accepted before it is applied
    return line


def resident(daemon: Vigild) -> int:
    size: int = daemon.status()["process"]["rss_bytes"]
    return size


def test_a_line_of_a_hundred_megabytes_is_cut_counted_and_costs_no_memory(daemon: Vigild) -> None:
    daemon.send(b"a line before\n")  # whatever is allocated once is allocated now
    line, before, memory = processed(daemon), daemon.status(), resident(daemon)
    with daemon.connect() as connection:
        for _ in range(100):
            connection.sendall(b"x" * MEBIBYTE)
        connection.sendall(b"\nthe next line\n")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert processed(daemon) == line + 2
    after = daemon.status()
    assert after["ingest"]["lines_truncated"] == before["ingest"]["lines_truncated"] + 1
    assert resident(daemon) - memory < 32 * MEBIBYTE


def test_every_kind_of_bytes_is_a_line_like_any_other(daemon: Vigild) -> None:
    before = processed(daemon)
    lines = [
        b"",
        b"\0" * 10,
        b"\xff\xfe\xfd",
        b"crlf\r",
        "émoji 🦉 \u2028 no new line".encode(),
        b"\x1b[31mred",
        b"lone\rcr",
    ]
    daemon.send(b"\n".join(lines))  # the last one has no newline
    daemon.applied(before + len(lines))
    status = daemon.status()
    assert status["logs_processed"] == before + len(lines)
    assert status["ingest"]["unterminated_lines"] >= 1
    assert status["status"] == "serving"


def test_slow_silent_and_dying_clients_harm_nobody(daemon: Vigild) -> None:
    before = processed(daemon)
    silent = [daemon.connect() for _ in range(200)]
    slow = daemon.connect()
    slow.sendall(b"half a li")
    resetting = daemon.connect()
    resetting.sendall(b"one whole line\nand a tail that nobody ends")
    daemon.applied(before + 1)
    resetting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    resetting.close()
    daemon.applied(before + 2)  # the tail counts

    began = time.monotonic()
    daemon.send_lines(sample_lines()[:1000])
    assert time.monotonic() - began < 10.0
    daemon.applied(before + 1002)
    slow.sendall(b"ne\n")
    daemon.applied(before + 1003)
    assert daemon.status()["ingest"]["connections"] >= 200
    for connection in (*silent, slow):
        connection.close()
    daemon.wait(lambda: daemon.status()["ingest"]["connections"] == 0)
    assert processed(daemon) == before + 1003


def test_many_clients_at_once_lose_nothing_and_get_their_confirmation(daemon: Vigild) -> None:
    before = processed(daemon)
    lines = sample_lines()
    failures: list[BaseException] = []

    def client(number: int) -> None:
        try:
            daemon.send_lines(lines[number * 100 : number * 100 + 100])
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    daemon.applied(before + 6000)
    assert processed(daemon) == before + 6000


def test_a_million_kinds_of_lines_and_of_sessions_stay_within_bounds(tmp_path: Path) -> None:
    words = [b"%x" % (n * 2654435761 % (1 << 32)) for n in range(100_000)]
    letters = bytes.maketrans(b"0123456789abcdef", b"ghijklmnopqrstuv")
    with vigild(tmp_path) as daemon:
        daemon.start()
        for start in range(0, len(words), 20_000):
            batch = [word.translate(letters) for word in words[start : start + 20_000]]
            daemon.send_lines([b"Jun  9 06:06:20 %s %s: %s %s" % (w, w[::-1], w[2:], w[:5]) for w in batch])
        daemon.applied(len(words))
        status = daemon.status()
        assert status["templates"]["live"] <= 8192
        assert status["sessions"]["open"] <= 65_536
        assert status["sessions"]["evicted"] > 0
        assert status["process"]["rss_bytes"] < 600 * MEBIBYTE
