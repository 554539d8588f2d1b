"""Makes a golden state directory of today's layout: `python -m tests.golden.make`.

Run it when a layout of the state is released, commit `state-N.tar.xz` and `state-N.json`, and put the checksum that it
prints into `test_golden.py`. Every later version must load it, so it is made once: what is there already is not made
again. It holds two snapshots, the later one with an ensemble in force, the model file, and after them frames of lines,
settings and a flush.

The json says what is in it: the later snapshot's line and digest, the last line, the earlier snapshot's name, the
numbers and layouts of state and model, and under "upgraded", by the number of a later layout, the digest that the
later snapshot has when it was brought to that one. The latter is added with every new layout of the state; the rest
is never edited.
"""

import hashlib
import json
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.running import sample_lines, vigild
from detection.columns.layout_upgrades import MODELS, STATES, Versions

HERE = Path(__file__).parent
WARMUP = 1500


def make(name: str) -> None:
    """Raises FileExistsError when it was made before."""
    archived = HERE / f"{name}.tar.xz"
    if archived.exists():
        raise FileExistsError(f"{archived.name} is in the hands of users, and stays as it is")
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
        expected |= {"state": _layout(STATES), "model": _layout(MODELS), "upgraded": {}}
        (HERE / f"{name}.json").write_text(json.dumps(expected, indent=1) + "\n")
        with tarfile.open(archived, "w:xz", preset=9) as archive:
            for path in sorted(daemon.state.iterdir()):
                if path.is_file() and path.name != "lock":
                    archive.add(path, path.name, filter=_anonymous)
    print(f'"{name}": "{hashlib.sha256(archived.read_bytes()).hexdigest()}"')


def _layout(versions: Versions) -> dict[str, object]:
    return {"format": versions.newest, "layout": versions.layouts[versions.newest]}


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    try:
        make(f"state-{STATES.newest}")
    except FileExistsError as exc:
        sys.exit(str(exc))
