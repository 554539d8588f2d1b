"""torch is loaded with the first model: a second of processor time and much memory that a daemon without one saves."""

from contextlib import closing
from pathlib import Path

from benchmarks.running import Vigild, sample_lines

SETTINGS = """
[learning]
warmup_lines = 1000000
early_lines = 1000
[admin]
bind = ["unix:admin.sock"]
"""


def has_loaded_torch(daemon: Vigild) -> bool:
    assert daemon.process is not None
    return "libtorch" in Path(f"/proc/{daemon.process.pid}/maps").read_text()


def test_a_daemon_loads_torch_with_its_first_model_and_not_before(tmp_path: Path) -> None:
    lines = sample_lines()
    with closing(Vigild(tmp_path, settings=SETTINGS)) as daemon:
        daemon.start()
        daemon.send_lines(lines[:500])
        daemon.applied(500)
        assert len(daemon.ask([line.decode() for line in lines[500:510]])) == 10
        daemon.kill()
        daemon.start()
        assert daemon.post("/checkpoint")["line"] == 500
        assert not has_loaded_torch(daemon), "neither judging, nor queries, nor replaying need it"
        daemon.send_lines(lines[500:1000])
        daemon.wait(lambda: daemon.status()["training"]["generation_in_force"] == 1, 180.0)
        assert has_loaded_torch(daemon)
        daemon.kill()
        daemon.start()
        assert has_loaded_torch(daemon), "the state is not there before the model is"
