"""A state or a model in which something is forged is refused by the column's name, or a detector lives on with it."""

from collections.abc import Callable, Iterator
from random import Random

import pytest

from detection.columns.state_columns import Columns, State
from detection.models.model import to_columns
from tests.detection.forged import (
    Forgery,
    a_forgery,
    forgeries_of_column,
    genuine,
    live_with_model,
    live_with_state,
    refused_model,
    refused_state,
)

pytest.importorskip("torch")  # a genuine model has a network

LOADED = 12  # with the other tests; tests/fuzz goes on from there

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def load_until_enough(columns: Columns, refused: Callable[[Columns], str | None], number: int) -> Iterator[Forgery]:
    """LOADED forgeries that are loaded. Whatever is refused on the way is refused in one sentence."""
    rng, loaded = Random(number), 0
    while loaded < LOADED:
        forgery = a_forgery(columns, rng)
        why = refused(forgery.columns)
        if why is None:
            loaded += 1
            yield forgery
        else:
            assert why and "\n" not in why and len(why) < 500, forgery.change


def test_a_forged_state_is_refused_in_a_sentence_or_can_be_lived_with() -> None:
    for forgery in load_until_enough(genuine().state, refused_state, 1):
        try:
            live_with_state(forgery.columns)
        except Exception as exc:
            exc.add_note(forgery.change)
            raise


def test_a_forged_model_is_refused_in_a_sentence_or_can_be_lived_with() -> None:
    for forgery in load_until_enough(to_columns(genuine().model), refused_model, 2):
        try:
            live_with_model(forgery.columns)
        except Exception as exc:
            exc.add_note(forgery.change)
            raise


def test_what_was_not_forged_is_loaded_and_can_be_lived_with() -> None:
    assert refused_state(genuine().state) is None and refused_model(to_columns(genuine().model)) is None
    live_with_state(genuine().state)


def forged(columns: Columns, change: str) -> State:
    [found] = [each for each in forgeries_of_column(columns, change.partition(":")[0]) if each.change == change]
    return found.columns


# Each is of another kind; all of them were loaded once, or ended the start.
OF_A_STATE = [
    "sessions.windowed: empty",
    "sessions.reached: no column",
    "sessions.counts: one row more",
    "sessions.key: all b''",
    "sessions.key: as |S3",
    "recent.starts: one row less",
    "recent.sizes: twice",
    "incidents.by_cause: empty",
    "incidents.what: all b'\\xff\\xfe\\x80'",
    "incidents.group_runs: all 0",
    "values.counts: one row less",
    "origins.given: empty",
    "origins.long_failures: all 241",
    "incidents.sample_line: all 0",
    "origins.background.counts: one column less",
    "vouching.sessions.opened: one row less",
    "sources.kinds: 'x'",
    "settings: JSON ('session', 'window') = 1180591620717411303424",
    "settings: JSON ('session',) = []",
    "known.answers: JSON (0, 'template') = 1180591620717411303424",
    "known.answers: JSON 1",
    "models.entries: JSON [None]",
]
OF_A_MODEL = [
    "rings.ensemble: missing",
    "rings.ngram: no dimension",
    "parts.counts/vectors: one column less",
    "parts.isolation_forest/feature: one column less",
    "parts.isolation_forest/scale: empty",
    "parts.transformer/0.qkv.weight: one column more",
]


@pytest.mark.parametrize("change", OF_A_STATE)
def test_of_a_state_this_is_refused_by_the_name_of_its_column_and_unchecked_it_breaks(change: str) -> None:
    state = forged(genuine().state, change)
    why = refused_state(state)
    assert why is not None and f"column {change.partition(':')[0]}" in why
    with pytest.raises(Exception):  # noqa: B017, whatever it is, here or at a later frame
        live_with_state(state)


@pytest.mark.parametrize("change", OF_A_MODEL)
def test_of_a_model_this_is_refused_by_the_name_of_its_column_and_unchecked_it_breaks(change: str) -> None:
    columns = forged(to_columns(genuine().model), change)
    why = refused_model(columns)
    assert why is not None and change.partition(":")[0] in why
    with pytest.raises(Exception):  # noqa: B017
        live_with_model(columns)
