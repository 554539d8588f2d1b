"""Too few descriptors and too little address space: refused in one sentence, or the daemon works."""

import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from benchmarks.running import Vigild, sample_lines, vigild
from daemon.host.process_limits import MIN_ADDRESS_SPACE, MIN_FILES
from tests.faults.altered import alter

EARLY_MODEL = """
[learning]
warmup_lines = 1000000
early_lines = 500
[admin]
bind = ["unix:admin.sock"]
"""
UNCHECKED = "import daemon.host.process_limits\ndaemon.host.process_limits.refuse_small_limits = lambda: None\n"


def limited(daemon: Vigild, *limits: str) -> Vigild:
    daemon.command[:0] = ["prlimit", *limits, "--"]
    return daemon


def refusal(daemon: Vigild) -> str:
    """All that it says before it ends."""
    daemon.launch()
    assert daemon.process is not None and daemon.process.wait(60.0) == 1
    return daemon.log


@pytest.mark.parametrize("files", [16, MIN_FILES - 1])
def test_too_few_descriptors_are_refused_in_one_sentence(tmp_path: Path, files: int) -> None:
    with vigild(tmp_path) as daemon:
        said = refusal(limited(daemon, f"--nofile={files}:{files}"))
    assert said.count("\n") == 1
    assert said.startswith(f"vigild: only {files} files may be open, and at least {MIN_FILES} are needed: raise Limit")


def test_with_the_fewest_that_are_allowed_it_works(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        limited(daemon, f"--nofile={MIN_FILES}:{MIN_FILES}").start()
        for _ in range(3):
            daemon.send_lines(sample_lines()[:500])
            daemon.post("/checkpoint")
        daemon.applied(1500)
        assert daemon.stop() == 0 and "Traceback" not in daemon.log


NOT_SHARED = """
import daemon.lifecycle
daemon.lifecycle.share_descriptors = lambda most, sockets: most
"""
TRIO_ACCEPTS = """
import daemon.api.http_connections
daemon.api.http_connections.Room._accept_when_possible = lambda self: self._listener.accept()
"""


@contextmanager
def idle_admin_clients(daemon: Vigild, number: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(number):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(daemon.runtime / "admin.sock"))
        yield


def test_with_few_descriptors_a_crowd_on_the_admin_socket_leaves_room_for_the_rest(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        limited(daemon, "--nofile=200:200").start()
        assert "on each admin socket for 13 with a request and 20 without one" in daemon.log
        with idle_admin_clients(daemon, 400):
            for _ in range(3):
                daemon.send_lines(sample_lines()[:500])
                daemon.post("/checkpoint")
        assert daemon.status()["admin"]["accept_errors"] == 0
        assert "Too many open files" not in daemon.log and "Traceback" not in daemon.log


@pytest.mark.parametrize("altered", [NOT_SHARED, NOT_SHARED + TRIO_ACCEPTS], ids=["counted", "left to trio"])
def test_without_descriptors_accepting_is_one_line_and_counted_and_would_be_a_traceback_each_time(
    tmp_path: Path, altered: str
) -> None:
    with vigild(tmp_path) as daemon:
        alter(daemon, altered)
        limited(daemon, "--nofile=128:128").start()
        with ExitStack() as stack:
            for _ in range(60):
                stack.enter_context(daemon.connect())
            daemon.wait(lambda: daemon.status()["ingest"]["connections"] == 60)
            stack.enter_context(idle_admin_clients(daemon, 300))
            daemon.wait(lambda: "Too many open files" in daemon.log)
            time.sleep(1.0)  # for what comes of the next attempts
        daemon.wait(lambda: daemon.status()["serving"])
        said = daemon.log.count("no connection to the admin API can be accepted for now: Too many open files")
        if TRIO_ACCEPTS in altered:
            assert said == 0 and "Traceback" in daemon.log
        else:
            assert said >= 1 and daemon.status()["admin"]["accept_errors"] > said
            assert "vigild_admin_accept_errors_total" in daemon.api.get("/metrics").text
            assert "Traceback" not in daemon.log


def test_a_small_soft_limit_is_raised_at_the_start(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        limited(daemon, "--nofile=40:4096").start()
        assert daemon.process is not None
        limits = Path(f"/proc/{daemon.process.pid}/limits").read_text()
        found = re.search(r"Max open files +(\d+)", limits)
        assert found and int(found[1]) == 1024 + 512


def test_too_little_address_space_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with vigild(tmp_path) as daemon:
        said = refusal(limited(daemon, f"--as={600 << 20}"))
    assert said.count("\n") == 1 and "the address space is limited to 600 MiB, and at least 1,024 MiB" in said


@pytest.fixture(scope="module")
def with_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state directory whose model takes torch to read."""
    home = tmp_path_factory.mktemp("model")
    with closing(Vigild(home, settings=EARLY_MODEL)) as daemon:
        daemon.start()
        daemon.send_lines(sample_lines()[:500])
        daemon.wait(lambda: daemon.status()["training"]["generation_in_force"] == 1, 180.0)
        daemon.post("/checkpoint")
        assert daemon.stop() == 0
    yield home / "state"


def test_with_the_least_address_space_that_is_allowed_it_works(tmp_path: Path) -> None:
    """With all libraries; a model takes more."""
    with vigild(tmp_path) as daemon:
        alter(daemon, "import torch\n")
        limited(daemon, f"--as={MIN_ADDRESS_SPACE}").start()
        daemon.send_lines(sample_lines()[:500])
        daemon.applied(500)
        daemon.post("/checkpoint")
        assert daemon.stop() == 0 and "Traceback" not in daemon.log


def test_unchecked_the_start_fails_halfway_at_some_library(tmp_path: Path, with_model: Path) -> None:
    """The control; even so it ends by itself, and without a traceback."""
    shutil.copytree(with_model, tmp_path / "state")
    with vigild(tmp_path) as daemon:
        alter(daemon, UNCHECKED)
        limited(daemon, f"--as={600 << 20}")
        said = refusal(daemon)
    assert "listening on" in said and "out of memory, threads or parts of the installation: " in said
    assert "Traceback" not in said
    assert not list((tmp_path / "state").glob("*.bad")), "neither a frame nor the model is blamed"
