import array
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.host.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A listening service manager, and the value of NOTIFY_SOCKET for it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@vigild-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0", 1) if address[0] == "@" else address)
        listener.settimeout(5)
        yield listener, address


def test_each_notification_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    listener, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000000"})
    notifier.extend(2.5)
    notifier.ready("serving\nWATCHDOG=trigger")
    notifier.status("line 12")
    notifier.watchdog()
    notifier.stopping()
    assert [listener.recv(4096) for _ in range(5)] == [
        b"EXTEND_TIMEOUT_USEC=2500000",
        b"READY=1\nSTATUS=serving WATCHDOG=trigger",
        b"STATUS=line 12",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]


def test_a_reload_says_when_it_began(manager: tuple[socket.socket, str]) -> None:
    listener, address = manager
    before = time.monotonic_ns() // 1000
    Notifier(address).reloading()
    first, second = listener.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC" and before <= int(value) <= time.monotonic_ns() // 1000


def test_file_descriptors_go_along(manager: tuple[socket.socket, str], tmp_path: Path) -> None:
    listener, address = manager
    with open(tmp_path / "kept", "wb") as kept:
        Notifier(address).send("FDSTORE=1", "FDNAME=x", fds=[kept.fileno()])
        message, ancillary, _, _ = listener.recvmsg(4096, socket.CMSG_SPACE(array.array("i").itemsize))
    assert message == b"FDSTORE=1\nFDNAME=x"
    received = array.array("i", ancillary[0][2])[0]
    assert os.readlink(f"/proc/self/fd/{received}") == str(tmp_path / "kept")
    os.close(received)


@contextmanager
def answering(listener: socket.socket, *, stores: bool, answers: bool = True) -> Iterator[list[bytes]]:
    """A manager that obeys its messages; yields the messages."""
    told: list[bytes] = []
    kept: list[int] = []

    def answer() -> None:
        message = b""
        while message != b"END":
            message, ancillary, _, _ = listener.recvmsg(4096, socket.CMSG_SPACE(4))
            told.append(message)
            fds = [array.array("i", data)[0] for _, _, data in ancillary]
            if not answers or (stores and b"FDSTORE=1" in message):
                kept.extend(fds)
            else:
                for fd in fds:
                    os.close(fd)

    thread = threading.Thread(target=answer)
    thread.start()
    yield told
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
        last.sendto(b"END", listener.getsockname())
    thread.join()
    for fd in kept:
        os.close(fd)


def test_a_connection_is_kept_even_when_its_sender_has_closed_and_forgotten_by_name(
    manager: tuple[socket.socket, str],
) -> None:
    listener, address = manager
    with answering(listener, stores=True) as told:
        one, two = socket.socketpair()
        with one, two:
            Notifier(address).keep("a-1", one.fileno())
            Notifier(address).forget("a-1")
    assert told == [b"FDSTORE=1\nFDPOLL=0\nFDNAME=a-1", b"FDSTOREREMOVE=1\nFDNAME=a-1", b"END"]


def test_room_in_the_store_is_found_by_sending_a_descriptor(
    manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, address = manager
    with answering(listener, stores=True) as told:
        assert Notifier(address).why_nothing_is_kept() is None
    assert b"FDSTOREREMOVE=1\nFDNAME=vigild-probe" in told, "and nothing of the question stays"

    with answering(listener, stores=False):
        reason = Notifier(address).why_nothing_is_kept()
        assert reason is not None and "FileDescriptorStoreMax" in reason

    monkeypatch.setattr("daemon.host.notify.BARRIER_SECONDS", 0.05)
    with answering(listener, stores=False, answers=False):
        reason = Notifier(address).why_nothing_is_kept()
        assert reason is not None and "does not answer" in reason

    reason = Notifier(None).why_nothing_is_kept()
    assert reason is not None and "NOTIFY_SOCKET" in reason


def test_without_a_manager_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier.from_environment({})
    notifier.ready("serving")
    notifier.watchdog()
    assert notifier.watchdog_seconds is None and not caplog.records


def test_a_manager_that_is_gone_is_logged_and_not_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        notifier = Notifier(str(tmp_path / "gone"))
        notifier.ready("serving")
        notifier.status("still there")
    assert len(caplog.records) == 1


def test_a_manager_that_does_not_read_holds_nobody_up_for_long(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        notifier = Notifier(str(tmp_path / "notify"))
        sent = 0
        while not notifier._failing and sent < 10_000:
            notifier.status(str(sent))
            sent += 1
        assert 0 < sent < 10_000
        assert listener.recv(100) == b"STATUS=0"
        notifier.status("again")
        assert not notifier._failing


def test_an_unwatched_daemon_feeds_nobody(manager: tuple[socket.socket, str]) -> None:
    listener, address = manager
    notifier = Notifier(address)
    notifier.watchdog()
    notifier.stopping()
    assert listener.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize(
    ("pid", "seconds"),
    [(str(os.getpid()), 20.0), (None, 20.0), (str(os.getpid() + 1), None)],
    ids=["our own", "nobody's", "another's"],
)
def test_the_watchdog_is_ours_only_when_it_names_us(pid: str | None, seconds: float | None) -> None:
    env = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "20000000"} | ({"WATCHDOG_PID": pid} if pid else {})
    assert Notifier.from_environment(env).watchdog_seconds == seconds


def test_children_inherit_nothing_of_it() -> None:
    env = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2", "HOME": "/"}
    Notifier.from_environment(env)
    assert env == {"HOME": "/"}
