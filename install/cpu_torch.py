"""Install the torch of constraints.txt into the environment of the Python that runs this: a build for CPUs.

For Linux on x86-64 the ordinary index has torch as a build for CUDA, which brings gigabytes that a machine without
such a card has no use for. torch's own index has builds for CPUs. It is asked for the torch wheel alone; what torch
needs comes with everything else from where pip is set up to look.

    TORCH_INDEX=URL   take torch from this index
    TORCH_INDEX=      take the torch that pip finds by itself

Without TORCH_INDEX torch's own index is taken if it answers within 5 seconds, else what pip finds. One sentence says
what was done. Exit status 0 when the right torch is there, else that of pip, which has said why.
"""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ANSWER_SECONDS = 5.0
CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


def main() -> int:
    wanted = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    if (there := _installed()).partition("+")[0] == wanted.removeprefix("torch=="):
        return _done(f"torch {there} is installed already")
    index = os.environ.get("TORCH_INDEX")
    if index:
        if status := _install(wanted, index):
            print(f"torch: {_shown(index)}, which TORCH_INDEX names, did not give {wanted}; name another", flush=True)
        return status
    if index is None and _answers(CPU_INDEX):
        if _install(wanted, CPU_INDEX) == 0:
            return 0
        print(f"torch: {CPU_INDEX} did not give it; trying what pip finds", flush=True)
    return _install_what_pip_finds(wanted, asked=index is None)


def _installed() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def _answers(index: str) -> bool:
    """Whether the index answers within ANSWER_SECONDS, all told: a name server may be what hangs."""
    answered: list[int] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{index}/torch/", timeout=ANSWER_SECONDS) as answer:
                answered.append(answer.status)
        except (OSError, ValueError):  # OSError: no route, no name, no certificate, an HTTP error
            pass

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    return answered == [200]


def _install(wanted: str, index: str) -> int:
    status = _pip("install", "--quiet", "--no-deps", "--index-url", index, wanted)
    if status == 0:
        return _done(f"installed torch {_fresh()} from {_shown(index)}")
    return status


def _install_what_pip_finds(wanted: str, *, asked: bool) -> int:
    why = f"{CPU_INDEX} does not answer; " if asked else ""
    if _is_cuda(wanted):
        print(
            f"torch: {why}the torch that pip finds is a build for CUDA: with what it needs some 3 GB are downloaded "
            "and 5 GB installed; to take another one, stop now and set TORCH_INDEX=URL",
            flush=True,
        )
    status = _pip("install", "--quiet", "--no-deps", wanted)
    return _done(f"{why}installed torch {_fresh()}, which pip found") if status == 0 else status


def _is_cuda(wanted: str) -> bool:
    """Whether the torch that pip would install needs CUDA's libraries. Where the index tells it, nothing is fetched."""
    said = _run("install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", wanted)
    if said.returncode:
        return False  # the installation will fail and say why
    needs = json.loads(said.stdout)["install"][0]["metadata"].get("requires_dist", [])
    return any(need.lower().startswith(("nvidia-", "cuda-")) for need in needs)


def _fresh() -> str:
    """The version that another process has installed by now: our own import system may not have noticed."""
    code = "from importlib.metadata import version; print(version('torch'))"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _shown(index: str) -> str:
    """Without a password."""
    scheme, mark, rest = index.partition("://")
    return scheme + mark + rest.rpartition("@")[2]


def _pip(*arguments: str) -> int:
    return subprocess.run(_command(arguments)).returncode


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(_command(arguments), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def _done(sentence: str) -> int:
    print(f"torch: {sentence}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
