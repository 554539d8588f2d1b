"""Makes a golden state directory of today's formats: `python -m tests.golden.make NAME`.

Run it when a format is released for the first time, commit `NAME.tar.xz` and `NAME.json`, and never again for that
name: every later version must load it (`test_golden.py`). Before that release it is remade with every change. It
holds two snapshots, the later one with an ensemble in force, the model file, and after them frames of lines,
settings and a flush.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.running import sample_lines, vigild

HERE = Path(__file__).parent
WARMUP = 1500


def make(name: str) -> None:
    lines = sample_lines()
    with tempfile.TemporaryDirectory() as home, vigild(Path(home), warmup=WARMUP, every_lines=10**9) as daemon:
        daemon.start()
        daemon.send_lines(lines[:500])
        early = Path(daemon.post("/checkpoint")["path"]).name
        daemon.send_lines(lines[500 : WARMUP + 100])
        daemon.wait_for_model()
        saved = daemon.post("/checkpoint")
        daemon.send_lines(lines[WARMUP + 100 : WARMUP + 200])
        daemon.post("/flush")
        with daemon.connect() as open_connection:
            taken = daemon.status()["ingest"]["bytes"]
            open_connection.sendall(b"an unfinished line")
            daemon.wait(lambda: daemon.status()["ingest"]["bytes"] > taken)
            daemon.kill()
        config = Path(home) / "vigild.toml"
        config.write_text(config.read_text() + "per_day = 7\n")
        daemon.start()  # a settings frame, and the unfinished line becomes a line
        daemon.applied(WARMUP + 201)
        daemon.kill()
        expected = {"line": saved["line"], "digest": saved["digest"], "last_line": WARMUP + 201, "early": early}
        (HERE / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")
        with tarfile.open(HERE / f"{name}.tar.xz", "w:xz", preset=9) as archive:
            for path in sorted(daemon.state.iterdir()):
                if path.is_file() and path.name != "lock":
                    archive.add(path, path.name, filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    make(sys.argv[1])
