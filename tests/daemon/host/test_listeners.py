import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon.host.listeners import (
    BACKLOG,
    ListenError,
    TcpAddress,
    UnixAddress,
    open_listeners,
    parse_address,
)


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


@contextmanager
def listening(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield


def test_addresses_are_read_as_people_write_them() -> None:
    assert parse_address("unix:admin.sock") == UnixAddress(Path("admin.sock"))
    assert parse_address("127.0.0.1:8765") == TcpAddress("127.0.0.1", 8765)
    assert parse_address("localhost:0") == TcpAddress("127.0.0.1", 0)
    assert str(parse_address("[::1]:8765")) == "[::1]:8765"
    assert TcpAddress("127.9.9.9", 1).loopback and not TcpAddress("10.0.0.1", 1).loopback


@pytest.mark.parametrize(
    "text", ["", "unix:", "8765", "127.0.0.1", "127.0.0.1:x", "h:1", "::1", "1.2.3.4:70000", "a\0b:1"]
)
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text)


def test_both_kinds_listen_and_the_socket_files_vanish_at_the_end(tmp_path: Path) -> None:
    with open_listeners(tmp_path, "log.sock", ["unix:admin.sock", "127.0.0.1:0"]) as listeners:
        assert connects(tmp_path / "log.sock") and connects(tmp_path / "admin.sock")
        port = listeners.admin[1].getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        assert listeners.places == [f"{tmp_path}/log.sock", f"{tmp_path}/admin.sock", f"127.0.0.1:{port}"]
        for name in ("log.sock", "admin.sock"):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o660
    assert list(tmp_path.iterdir()) == []


def test_many_may_connect_before_anybody_accepts(tmp_path: Path) -> None:
    with open_listeners(tmp_path, "log.sock", []):
        most = min(BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text()))
        clients = [socket.socket(socket.AF_UNIX) for _ in range(min(most, 300))]
        for client in clients:
            client.setblocking(False)
            client.connect(str(tmp_path / "log.sock"))
        for client in clients:
            client.close()


def test_the_file_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    with listening(path):
        pass
    assert path.exists() and not connects(path)
    with open_listeners(tmp_path, "log.sock", []):
        assert connects(path)


def test_a_live_socket_is_left_alone_and_its_process_named(tmp_path: Path) -> None:
    with listening(tmp_path / "admin.sock"):
        with pytest.raises(ListenError, match=rf"admin\.sock: process {os.getpid()} listens there"):
            with open_listeners(tmp_path, "log.sock", ["unix:admin.sock"]):
                pytest.fail("opened")
        assert connects(tmp_path / "admin.sock")
    assert not (tmp_path / "log.sock").exists()


def test_a_live_socket_with_a_full_backlog_is_alive_too(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "log.sock"))
        listener.listen(0)
        first.connect(str(tmp_path / "log.sock"))
        with pytest.raises(ListenError, match="listens there"):
            with open_listeners(tmp_path, "log.sock", []):
                pytest.fail("opened")


def test_another_kind_of_file_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "log.sock").write_text("precious")
    with pytest.raises(ListenError, match="is not a socket"):
        with open_listeners(tmp_path, "log.sock", []):
            pytest.fail("opened")
    assert (tmp_path / "log.sock").read_text() == "precious"


def test_a_socket_that_somebody_put_in_our_place_stays(tmp_path: Path) -> None:
    path = tmp_path / "log.sock"
    with open_listeners(tmp_path, "log.sock", []):
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    assert path.exists()
    successor.close()


def test_errors_are_one_line_each(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=rf"^127\.0\.0\.1:{port}: is taken; choose another in \[admin\] bind$"):
            with open_listeners(tmp_path, "log.sock", [f"127.0.0.1:{port}"]):
                pytest.fail("opened")
    with pytest.raises(ListenError, match="at most 107 bytes, this one has"):
        with open_listeners(tmp_path / ("x" * 100), "log.sock", []):
            pytest.fail("opened")
    with pytest.raises(ListenError, match=r"log\.sock: cannot listen: No such file"):
        with open_listeners(tmp_path / "gone", "log.sock", []):
            pytest.fail("opened")
    assert list(tmp_path.iterdir()) == []


PASSED_ON = """
import json, os, sys
from pathlib import Path
from daemon.host.listeners import inherit_sockets, open_listeners
fds = int(os.environ["LISTEN_FDS"])
with open_listeners(Path(sys.argv[1]), "log.sock", ["unix:admin.sock"], inherit_sockets()) as listeners:
    print(json.dumps({
        "places": listeners.places,
        "log": listeners.log[0].fileno(),
        "left": sorted(name for name in os.environ if name.startswith("LISTEN_")),
        "inheritable": [os.get_inheritable(3 + n) for n in range(fds)],
        "stored": sorted(listeners.stored),
    }), flush=True)
    connection, _ = listeners.log[0].accept() if sys.argv[2:] else (None, None)
    if connection: connection.setblocking(True); print(connection.recv(100), flush=True)
"""


@pytest.mark.slow
def test_a_passed_socket_takes_the_place_of_ours_and_is_not_removed(tmp_path: Path) -> None:
    tool = shutil.which("systemd-socket-activate")
    if tool is None:
        pytest.skip("systemd-socket-activate is not installed")
    path = tmp_path / "passed.sock"
    command = [tool, f"--listen={path}", "--fdname=log", f"--setenv=PYTHONPATH={Path(__file__).parents[3]}"]
    daemon = subprocess.Popen(
        [*command, sys.executable, "-c", PASSED_ON, str(tmp_path), "accept"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not connects(path):  # the tool starts us at the first connection, which is this one
        assert daemon.poll() is None and time.monotonic() < deadline
    out, _ = daemon.communicate(timeout=20)
    said, received = out.decode().splitlines()
    assert json.loads(said) == {
        "places": [str(path), f"{tmp_path}/admin.sock"],
        "log": 3,
        "left": [],
        "inheritable": [False],
        "stored": [],
    }
    assert received == "b''"
    assert path.exists() and not (tmp_path / "admin.sock").exists()


def run_with_descriptors(
    tmp_path: Path, sockets: list[socket.socket], names: str
) -> subprocess.CompletedProcess[bytes]:
    """Start PASSED_ON as a service manager would: descriptors from 3 on, announced by variables."""
    shell = "; ".join(f"exec {3 + n}<&{each.fileno()}" for n, each in enumerate(sockets))
    announce = f"export LISTEN_PID=$$ LISTEN_FDS={len(sockets)} LISTEN_FDNAMES={names}"
    return subprocess.run(
        [
            "bash",
            "-c",
            f'{shell}; {announce}; exec "$@"',
            "bash",
            sys.executable,
            "-c",
            PASSED_ON,
            str(tmp_path),
        ],
        pass_fds=[each.fileno() for each in sockets],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        timeout=30,
    )


def high(connection: socket.socket) -> socket.socket:
    """The same socket under a number that the shell's numbering from 3 does not run into."""
    number = fcntl.fcntl(connection.fileno(), fcntl.F_DUPFD, 50)
    connection.close()
    return socket.socket(fileno=number)


@pytest.mark.slow
def test_kept_connections_come_back_by_name(tmp_path: Path) -> None:
    one, two = socket.socketpair()
    with high(one) as kept, two:
        done = run_with_descriptors(tmp_path, [kept], "conn-7")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stored"] == ["conn-7"]


@pytest.mark.slow
def test_a_probe_descriptor_is_not_taken_for_a_connection(tmp_path: Path) -> None:
    one, two = socket.socketpair()
    with high(one) as left_over, two:
        done = run_with_descriptors(tmp_path, [left_over], "vigild-probe")
        left_over.close()
        assert two.recv(1) == b""
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stored"] == []


@pytest.mark.slow
def test_a_passed_socket_of_unknown_purpose_is_an_error(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "x.sock"))
    listener.listen()
    with high(listener) as odd:
        done = run_with_descriptors(tmp_path, [odd], "web")
    assert done.returncode == 1
    assert b"FileDescriptorName= must be log or admin" in done.stderr
