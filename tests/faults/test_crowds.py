"""Crowds of clients at the shipped limits: what others, of the same user and of another, see beside them."""

import os
import resource
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from actors.connection_places import SILENT_SECONDS
from actors.ingest import MAX_CONNECTIONS
from benchmarks.running import QUICK, Vigild, sample_lines, vigild
from tests.faults.altered import alter, restore

pytestmark = pytest.mark.timeout(600)

ANOTHER_USER = 65534
NO_SHARES = """
import actors.connection_turns
actors.connection_turns.ROUND_BYTES = actors.connection_turns.SHARED_CHUNK_BYTES = 1 << 30
"""
NOBODY_GIVES_WAY = """
import actors.connection_places
actors.connection_places.Places._shut_down_connection = lambda self, place: False
"""
WHOEVER_COMES_HAS_A_PLACE = """
import daemon.api.http_connections
async def came(self):
    return True
daemon.api.http_connections.Connection.read_head = came
daemon.api.http_connections.Room._make_way = lambda self: float("inf")
"""
FLOODERS = 20


@contextmanager
def many_files(number: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < number:
        pytest.skip("too few files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """What this process connects meanwhile is that user's."""
    if os.geteuid() != 0 and uid != os.geteuid():
        pytest.skip("only root can be another user")
    before = os.geteuid()
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(before)


def open_to_all(daemon: Vigild) -> None:
    daemon.runtime.chmod(0o755)
    (daemon.runtime / "log.sock").chmod(0o666)


@contextmanager
def flooders(daemon: Vigild, uid: int) -> Iterator[None]:
    """Processes that send without end."""
    lines = b"".join(line + b"\n" for line in sample_lines())
    children = []
    try:
        for _ in range(FLOODERS):
            with as_user(uid), daemon.connect() as connection:
                if child := os.fork():
                    children.append(child)
                    continue
                try:
                    connection.settimeout(None)
                    while True:
                        connection.sendall(lines)
                finally:
                    os._exit(0)
        yield
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def confirmations(daemon: Vigild, number: int) -> list[float]:
    """Seconds from the connection to the clean end that says that its line is durable."""
    found = []
    for _ in range(number):
        began = time.monotonic()
        daemon.send(b"one line of another\n")
        found.append(time.monotonic() - began)
    return found


@pytest.mark.parametrize("uid", [ANOTHER_USER, os.geteuid()], ids=["of another user", "of the same user"])
def test_beside_twenty_flooders_a_line_is_confirmed_within_a_second_and_is_not_without_shares(
    tmp_path: Path, uid: int
) -> None:
    with vigild(tmp_path) as daemon:
        daemon.start()
        open_to_all(daemon)
        with flooders(daemon, uid):
            daemon.wait(lambda: daemon.status()["logs_processed"] > 50_000)
            fair = confirmations(daemon, 40)
        daemon.kill()
        alter(daemon, NO_SHARES)
        daemon.start()
        open_to_all(daemon)
        before = daemon.status()["logs_processed"]
        with flooders(daemon, uid):
            daemon.wait(lambda: daemon.status()["logs_processed"] > before + 50_000)
            unfair = confirmations(daemon, 5)
    print(f"median {statistics.median(fair):.3f} s, longest {max(fair):.3f} s; without shares {unfair}")
    assert max(fair) < 1.0
    assert statistics.median(unfair) > 3 * statistics.median(fair)


@contextmanager
def one_byte_each(daemon: Vigild, uid: int) -> Iterator[None]:
    """All places, and those at the door, are taken by connections that have sent one byte."""
    with many_files(4096), ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 64):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            with as_user(uid):
                # Without a timeout, so that it waits where the backlog is full.
                client.connect(str(daemon.runtime / "log.sock"))
            client.sendall(b"x")
        daemon.wait(lambda: daemon.status()["ingest"]["connections"] == MAX_CONNECTIONS)
        yield


def seconds_until_confirmed(daemon: Vigild, most: float) -> float | None:
    began = time.monotonic()
    while time.monotonic() < began + most:
        with daemon.connect() as connection:
            connection.settimeout(began + most - time.monotonic())
            try:
                connection.sendall(b"at last\n")
                connection.shutdown(socket.SHUT_WR)
                if connection.recv(1) == b"":
                    return time.monotonic() - began
            except TimeoutError:
                return None
            except ConnectionError:
                continue  # refused: a sender knows, and tries again
    return None


def test_idle_connections_keep_out_no_other_user_nor_their_own_for_long(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        daemon.start()
        open_to_all(daemon)
        with one_byte_each(daemon, ANOTHER_USER):
            seconds = seconds_until_confirmed(daemon, 5.0)
            assert seconds is not None and seconds < 2.0, "of another user: at once"
            with as_user(ANOTHER_USER):
                assert seconds_until_confirmed(daemon, SILENT_SECONDS + 5.0) is not None
            reasons = {each["code"]: each["text"] for each in daemon.health()["reasons"]}
            assert f"user {ANOTHER_USER} has 1,024 of them" in reasons["limits"]
            assert daemon.status()["ingest"]["connections_gave_way"] >= 2
            metrics = daemon.api.get("/metrics").text
            assert 'vigild_degraded{reason="limits"} 1.0' in metrics and "vigild_connections_waiting 1.0" in metrics


def test_without_giving_way_they_would(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        alter(daemon, NOBODY_GIVES_WAY)
        daemon.start()
        open_to_all(daemon)
        with one_byte_each(daemon, ANOTHER_USER):
            assert seconds_until_confirmed(daemon, SILENT_SECONDS + 5.0) is None
            assert {each["code"] for each in daemon.health()["reasons"]} == {"limits"}, "it is seen all the same"


HALF_A_HEAD = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "
HALF_A_BODY = b"POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{"
WRONG_TOKEN = (
    b"POST /flush HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer none-of-yours\r\nContent-Length: 0\r\n\r\n"
)
GET_EVENTS = b"GET /events?all=1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def crowded(daemon: Vigild) -> bool:
    connections: int = daemon.status()["admin"]["connections"]
    return connections >= 60  # of one listening socket are served 64


@contextmanager
def crowd(daemon: Vigild, port: int, number: int, first: bytes) -> Iterator[None]:
    """So many clients that send `first`, and never read."""
    with many_files(8192), ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in range(number)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        for client in clients:
            try:
                client.send(first)
            except OSError:
                continue  # closed already, or not connected
        daemon.wait(lambda: crowded(daemon))
        yield


@contextmanager
def coming_again(daemon: Vigild, port: int, number: int, first: bytes) -> Iterator[None]:
    """So many clients that send `first` and then a byte each quarter of a second, and come again when closed."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=3.0) as client:
                    client.sendall(first)
                    while not over.wait(0.25):
                        client.sendall(b"a")
            except OSError:
                over.wait(0.05)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        daemon.wait(lambda: crowded(daemon))
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def answered(port: int, times: int, seconds: float) -> bool:
    """Whether each of so many requests over TCP is answered within that time."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=seconds) as api:
        try:
            return all(api.get("/health", headers={"Connection": "close"}).status_code == 200 for _ in range(times))
        except httpx.TimeoutException:
            return False


@contextmanager
def on_tcp(home: Path) -> Iterator[tuple[Vigild, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    settings = QUICK.format(warmup=1_000_000, every_lines=10_000, verdicts="flagged", retrain=1_000_000)
    daemon = Vigild(home, settings=settings.replace('"unix:admin.sock"', f'"unix:admin.sock", "127.0.0.1:{port}"'))
    try:
        yield daemon, port
    finally:
        daemon.close()


def test_crowds_on_tcp_keep_out_nobody_and_do_without_the_hall(tmp_path: Path) -> None:
    with on_tcp(tmp_path) as (daemon, port):
        daemon.start()
        for clients in (
            crowd(daemon, port, 5000, b""),
            coming_again(daemon, port, 200, HALF_A_HEAD),
            coming_again(daemon, port, 200, HALF_A_BODY),
            coming_again(daemon, port, 200, WRONG_TOKEN),
            crowd(daemon, port, 1000, GET_EVENTS),
        ):
            with clients:
                assert answered(port, 5, 4.0)
                began = time.monotonic()
                assert daemon.health()["serving"] and time.monotonic() - began < 1.0, "admin.sock sees nothing of it"
        assert daemon.status()["admin"]["gave_way"] > 0
        assert "vigild_admin_connections_gave_way_total" in daemon.api.get("/metrics").text
        assert "Traceback" not in daemon.log
        daemon.kill()

        alter(daemon, WHOEVER_COMES_HAS_A_PLACE)
        daemon.start()
        with crowd(daemon, port, 5000, b""):
            assert not answered(port, 5, 4.0)
            assert daemon.health()["serving"]
        restore(daemon)
