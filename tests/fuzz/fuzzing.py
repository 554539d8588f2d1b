"""Not a test: reads inputs that somebody else might have made, until a number of them or a time is over.

What is found is shrunk, written to `corpus/<target>/` under the name of its hash, and raised. Whatever lies there is
read by every run, and is what later inputs are made of: commit it.
"""

import hashlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisWarning

from tests.fuzz.mutation import inputs
from tests.fuzz.targets import Target

CORPUS = Path(__file__).parent / "corpus"
# Whatever the size: a first call imports and compiles, a busy machine has a collection of garbage now and then.
BASE_SECONDS = 0.1
_EXAMPLES_A_ROUND = 1000


class TooSlow(AssertionError):
    pass


@dataclass(frozen=True, repr=False)
class _Input:
    """Said in full where it is kept, not each time that somebody shows it."""

    data: bytes

    def __repr__(self) -> str:
        return f"{len(self.data)} bytes"


def kept(target: Target, corpus: Path = CORPUS) -> list[Path]:
    return sorted((corpus / target.name.replace(" ", "-")).glob("*"))


def read_in_time(target: Target, data: bytes) -> None:
    """Raises what `target.read` raises, and TooSlow; processor time counts, and the best of three."""
    allowed = BASE_SECONDS + target.seconds_per_megabyte * len(data) / 1e6
    took = []
    for _ in range(3):
        began = time.process_time()
        target.read(data)
        took.append(time.process_time() - began)
        if took[-1] <= allowed:
            return
    raise TooSlow(f"{target.name}: {len(data)} bytes took {min(took):.2f} s of {allowed:.2f} s")


def fuzz(target: Target, examples: int, number: int, corpus: Path = CORPUS) -> None:
    """Read `examples` inputs, which follow from `number`. Raises for the smallest that was found, having kept it."""
    seeds = [*target.seeds(), *(path.read_bytes() for path in kept(target, corpus))]
    failed: list[bytes] = []

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(inputs(seeds).map(_Input))
    def read(given_: _Input) -> None:
        try:
            read_in_time(target, given_.data)
        except BaseException:
            failed.append(given_.data)
            raise

    try:
        with warnings.catch_warnings():
            # Of long inputs, which it would rather not show; it would hide what was found.
            warnings.simplefilter("ignore", HypothesisWarning)
            read()
    except BaseException as exc:
        if failed:  # the last one is the smallest
            exc.add_note(f"input: {failed[-1][:2000]!r}\nkept as {keep(target, failed[-1], corpus)}")
        raise


def fuzz_for(target: Target, seconds: float, until: Callable[[], float] = time.monotonic) -> int:
    """Round after round, each with other inputs than any before it on this machine; how many were read."""
    end, number, read = until() + seconds, time.time_ns(), 0
    while until() < end:
        fuzz(target, _EXAMPLES_A_ROUND, number)
        number, read = number + 1, read + _EXAMPLES_A_ROUND
    return read


def keep(target: Target, data: bytes, corpus: Path) -> Path:
    path = corpus / target.name.replace(" ", "-") / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
