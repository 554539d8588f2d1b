"""Whatever bytes come from outside, they are read in time in proportion to their size, or refused as is promised.

A short form with the same inputs each time runs with the other tests; VIGILD_FUZZ_SECONDS (`make fuzz`: 600) is how
long each target is given other ones. What was ever found lies in `corpus/` and is read first.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.fuzzing import CORPUS, TooSlow, fuzz, fuzz_for, kept, read_in_time
from tests.fuzz.targets import TARGETS, Target

SECONDS = float(os.environ.get("VIGILD_FUZZ_SECONDS", "0"))

pytestmark = pytest.mark.timeout(300 + 5 * SECONDS)
every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@every_target
def test_valid_inputs_and_what_was_once_found_are_read_as_promised(target: Target) -> None:
    for data in [*target.seeds(), *(path.read_bytes() for path in kept(target))]:
        read_in_time(target, data)


@every_target
def test_inputs_that_are_almost_right_are_read_as_promised(
    target: Target, record_property: Callable[[str, object], None]
) -> None:
    if SECONDS:
        record_property("inputs", fuzz_for(target, SECONDS))
    else:
        fuzz(target, target.examples, number=1)


def test_the_corpus_holds_nothing_that_no_target_reads() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= {target.name.replace(" ", "-") for target in TARGETS}


def undocumented(data: bytes) -> None:
    if b"%%" in data:
        raise KeyError("%%")


def loses_a_line(data: bytes) -> None:
    # As `str.splitlines` would, with more kinds of lines than there are.
    assert len(data.decode("latin-1").splitlines()) == data.removesuffix(b"\n").count(b"\n") + 1 or not data


def square(data: bytes) -> None:
    """Work that grows with the square of the length."""
    for start in range(0, len(data), 200):
        sum(data[start:])


@pytest.mark.parametrize(
    ("read", "error"), [(undocumented, KeyError), (loses_a_line, AssertionError), (square, TooSlow)]
)
def test_a_reader_with_a_fault_is_caught_and_the_input_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[bytes], None], error: type[Exception]
) -> None:
    """The controls: an error that nobody promised, a line that is lost, time that grows with the square."""
    if error is TooSlow:
        monkeypatch.setattr("tests.fuzz.fuzzing.BASE_SECONDS", 0.01)  # little work is enough, so that it is soon shrunk
    target = Target("faulty", lambda: [b"a line with 100% of it\nand another one\n"], read, seconds_per_megabyte=0.1)
    with pytest.raises(error) as caught:
        fuzz(target, 1000, number=1, corpus=tmp_path)
    (found,) = kept(target, tmp_path)
    assert found.name in "".join(caught.value.__notes__)
    with pytest.raises(error):
        read_in_time(target, found.read_bytes())
