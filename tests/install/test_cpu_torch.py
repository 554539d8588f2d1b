"""install/cpu_torch.sh, as the Makefile, the installer and the image call it, against indexes on this machine.

`ordinary` stands for PyPI: its torch is a build for CUDA. `own` stands for torch's own index: a build for CPUs, and
some other package, which nobody may ask it for.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
[PINNED] = [line[7:] for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")]


def wheel(name: str, version: str, *needs: str) -> tuple[str, bytes]:
    """The file name and the bytes of a wheel that holds nothing."""
    place = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    members = {
        f"{place}/METADATA": metadata + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{place}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    members[f"{place}/RECORD"] = "".join(f"{each},,\n" for each in (*members, f"{place}/RECORD"))
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for each, text in members.items():
            archive.writestr(each, text)
    return f"{name}-{version}-py3-none-any.whl", packed.getvalue()


@dataclass
class Index:
    """A PEP 503 index over loopback. `asked` are the paths of the requests, in order."""

    wheels: list[tuple[str, bytes]]
    hangs: bool = False
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str) -> bytes | None:
        files = dict(self.wheels)
        kind, _, name = path.strip("/").partition("/")
        if kind == "files":
            return files.get(name.replace("%2B", "+"))
        links = [f'<a href="/files/{each}">{each}</a>' for each in files if each.startswith(f"{name}-")]
        return "".join(links).encode() if links else None


@pytest.fixture
def indexes() -> Iterator[tuple[Index, Index]]:
    """Ordinary and torch's own."""
    ordinary = Index([wheel("torch", PINNED, "filelock", 'nvidia-cudnn-cu13==9; platform_system == "Linux"')])
    own = Index([wheel("torch", f"{PINNED}+cpu", "filelock"), wheel("filelock", "9.9")])
    servers = [_serve(index) for index in (ordinary, own)]
    yield ordinary, own
    for server in servers:
        server.shutdown()
        server.server_close()


def _serve(index: Index) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.asked.append(self.path)
            if index.hangs:
                time.sleep(60)
                return
            body = index.answer(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/html" if "/files/" not in self.path else "application/octet-stream")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    index.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with pip alone."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    return place / "bin" / "python"


@pytest.fixture
def python(empty: Path) -> Iterator[Path]:
    yield empty
    subprocess.run([empty, "-m", "pip", "uninstall", "-qqy", "torch", "filelock"], check=True)


def install(
    python: Path, ordinary: Index, index: str | None = None, tree: Path = ROOT
) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TORCH_INDEX"))}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": ordinary.url, "PIP_NO_CACHE_DIR": "1", "no_proxy": "*"}
    if index is not None:
        env["TORCH_INDEX"] = index
    command = ["sh", str(tree / "install/cpu_torch.sh"), str(python)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def changed(tmp_path: Path, old: str, new: str) -> Path:
    """A tree whose script has `new` for `old`: no test may depend on what torch's own index answers today."""
    place = tmp_path / "install"
    shutil.copytree(ROOT / "install", place)
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    script = place / "cpu_torch.py"
    text = script.read_text()
    assert text.count(old) == 1
    script.write_text(text.replace(old, new))
    return tmp_path


def installed(python: Path) -> set[str]:
    listed = [str(python), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    done = subprocess.run(listed, check=True, capture_output=True, text=True)
    return {line for line in done.stdout.split() if line.startswith(("torch", "filelock"))}


CPU = {f"torch=={PINNED}+cpu"}
CUDA = {f"torch=={PINNED}"}


def test_the_given_index_gives_torch_and_nothing_else(python: Path, indexes: tuple[Index, Index]) -> None:
    ordinary, own = indexes
    done = install(python, ordinary, own.url)
    assert done.returncode == 0, done.stderr
    assert installed(python) == CPU
    assert set(own.asked) == {"/simple/torch/", f"/files/torch-{PINNED}%2Bcpu-py3-none-any.whl"}
    assert ordinary.asked == []
    assert done.stdout == f"torch: installed torch {PINNED}+cpu from {own.url}\n"

    # What is there is left alone, and no index is asked.
    own.asked.clear()
    again = install(python, ordinary, own.url)
    assert again.stdout == f"torch: torch {PINNED}+cpu is installed already\n"
    assert (ordinary.asked, own.asked) == ([], [])


def test_the_control_without_no_deps_asks_that_index_for_more(
    python: Path, indexes: tuple[Index, Index], tmp_path: Path
) -> None:
    ordinary, own = indexes
    tree = changed(tmp_path, '"--no-deps", "--index-url"', '"--index-url"')
    assert install(python, ordinary, own.url, tree).returncode == 0
    assert "/simple/filelock/" in own.asked


def test_torchs_own_index_is_taken_when_it_answers(python: Path, indexes: tuple[Index, Index], tmp_path: Path) -> None:
    ordinary, own = indexes
    tree = changed(tmp_path, "https://download.pytorch.org/whl/cpu", own.url)
    done = install(python, ordinary, tree=tree)
    assert done.returncode == 0, done.stderr
    assert installed(python) == CPU
    assert ordinary.asked == []


def test_an_index_that_hangs_costs_five_seconds_and_a_cuda_build_is_announced(
    python: Path, indexes: tuple[Index, Index], tmp_path: Path
) -> None:
    ordinary, own = indexes
    own.hangs = True
    start = time.monotonic()
    by_itself = install(python, ordinary, index="")
    without = time.monotonic() - start
    subprocess.run([python, "-m", "pip", "uninstall", "-qqy", "torch"], check=True)

    tree = changed(tmp_path, "https://download.pytorch.org/whl/cpu", own.url)
    start = time.monotonic()
    done = install(python, ordinary, tree=tree)
    took = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    assert own.asked == ["/simple/torch/"]
    assert took < 5 + 3 * without + 5  # on a busy machine too; pip alone would wait for minutes
    assert installed(python) == CUDA
    warning, sentence = done.stdout.splitlines()
    assert f"{own.url} does not answer; the torch that pip finds is a build for CUDA" in warning
    assert "TORCH_INDEX" in warning
    assert sentence.endswith(f"installed torch {PINNED}, which pip found")

    # Asked for what pip finds, it takes that without asking torch's index; CUDA is announced all the same.
    assert "build for CUDA" in by_itself.stdout
    assert "does not answer" not in by_itself.stdout


def test_a_build_for_cpus_that_pip_finds_is_not_called_cuda(python: Path, indexes: tuple[Index, Index]) -> None:
    _, own = indexes
    done = install(python, own, index="")
    assert installed(python) == CPU
    assert done.stdout == f"torch: installed torch {PINNED}+cpu, which pip found\n"


def test_an_index_that_answers_without_the_wheel_is_not_the_end(
    python: Path, indexes: tuple[Index, Index], tmp_path: Path
) -> None:
    ordinary, own = indexes
    own.wheels = [wheel("torch", "1.0+cpu")]
    tree = changed(tmp_path, "https://download.pytorch.org/whl/cpu", own.url)
    done = install(python, ordinary, tree=tree)
    assert done.returncode == 0
    assert installed(python) == CUDA
    assert "did not give it; trying what pip finds" in done.stdout


def test_a_given_index_that_has_no_torch_is_an_error(python: Path, indexes: tuple[Index, Index]) -> None:
    ordinary, own = indexes
    own.wheels = [wheel("torch", "1.0+cpu")]
    done = install(python, ordinary, own.url)
    assert done.returncode != 0
    assert f"torch=={PINNED}" in done.stderr
    assert "which TORCH_INDEX names, did not give" in done.stdout.splitlines()[-1]
    assert installed(python) == set()
    assert ordinary.asked == []


def test_a_password_in_the_address_is_not_shown(python: Path, indexes: tuple[Index, Index]) -> None:
    ordinary, own = indexes
    done = install(python, ordinary, own.url.replace("//", "//user:secret@"))
    assert installed(python) == CPU
    assert "secret" not in done.stdout + done.stderr
    assert own.url in done.stdout


def test_every_way_to_install_uses_it() -> None:
    with closing(open(ROOT / "Makefile")) as makefile:
        assert makefile.read().count("sh install/cpu_torch.sh $(BIN)/python") == 2
    assert "sh install/cpu_torch.sh /opt/vigild/bin/python" in (ROOT / "Dockerfile").read_text()
    assert '"$source/install/cpu_torch.sh" "$venv/bin/python"' in (ROOT / "install.sh").read_text()
