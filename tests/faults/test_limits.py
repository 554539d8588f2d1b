"""Too few descriptors and too little address space: refused in one sentence, or the daemon works."""

import re
import shutil
from collections.abc import Iterator
from contextlib import closing
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
