"""Values against a plain reading of targets; their scores against a plain reading of Witten and Bell."""

import gzip
import json
import math
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detection.columns.state_columns import digest
from detection.members.parameter_values.character_model import (
    CLASSES,
    CUT,
    EDGE,
    HALVED_ABOVE,
    PATH,
    QUERY,
    TARGET_BYTES,
    VALUE_BYTES,
    WORST,
    ValueModel,
    Values,
    values_of,
)

PAYLOADS = Path(__file__).parents[4] / "shared" / "data" / "payloads" / "payloads.jsonl.gz"

_UNRESERVED = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"  # RFC 3986

# Bytes that mean something here come often enough to stand beside each other.
_TELLING = [b"/", b"?", b"&", b"=", b"%", b"%2", b"%25", b"41", b"%26", b"+", b"a", b"[", b"\n", b"'"]
targets_drawn = st.lists(st.lists(st.sampled_from(_TELLING) | st.binary(max_size=2)).map(b"".join), max_size=8)


def _values(targets: Sequence[bytes]) -> Values:
    return values_of(targets, _all(len(targets)))


def _all(lines: int) -> NDArray[np.bool_]:
    return np.ones(lines, np.bool_)


def _query(values: Sequence[bytes]) -> list[bytes]:
    """A target for each value, which will have it as its only value."""
    return [b"/x?q=" + quote_from_bytes(value, safe="").encode() for value in values]


def _texts(values: Values) -> list[tuple[int, bytes, int]]:
    """Of each value its line, its bytes and its kind."""
    bounds = zip(values.offsets[:-1].tolist(), values.offsets[1:].tolist(), strict=True)
    texts = [values.text[begin + 2 : end - 1].tobytes() for begin, end in bounds]
    return list(zip(values.lines.tolist(), texts, values.kinds.tolist(), strict=True))


def _scores(model: ValueModel, targets: Sequence[bytes]) -> list[float]:
    scores: list[float] = model.scores(_values(targets), len(targets)).tolist()
    return scores


def _taught(targets: Sequence[bytes]) -> ValueModel:
    model = ValueModel()
    model.learn(_values(targets), _all(len(targets)))
    return model


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (b"/shop/item-12.html", []),
        (b"/shop?", []),
        (b"/shop?a=&b", [b"b"]),
        (b"/shop?a=1&bc=x=y&&d", [b"1", b"x=y", b"d"]),
        (b"/a+b?q=c+d%2Be", [b"a+b", b"c d+e"]),
        (b"/x?q=%2527%2520or", [b"' or"]),
        (b"/x?q=%252527", [b"%27"]),
        (b"/x?q=%%34%31%zz%4", [b"A%zz%4"]),
        (b"/x?q=a%26b%3Dc%3Fd%2Fe", [b"a&b=c?d/e"]),
        (b"/x?a[]=1&a%5B0%5D=2", [b"1", b"2"]),
        (b"/x?' or 1=1&a[$ne]=1", [b"' or 1=1", b"a[$ne]=1"]),
        (b"/x?u=http://y/?a=b&c=/d", [b"http://y/?a=b", b"/d"]),
        (b"/plain/<script>/more/%2e%2e?", [b"<script>", b".."]),
        (b"/caf%C3%A9/x", [b"caf\xc3\xa9"]),
        (b"?\0", [b"\0"]),
        (b"", []),
    ],
)
def test_values_are_what_stands_after_names_and_odd_segments(target: bytes, found: list[bytes]) -> None:
    assert [text for _, text, _ in _texts(_values([target]))] == found


@pytest.mark.slow
@given(targets_drawn, st.data())
@settings(max_examples=300, deadline=None)
def test_values_are_those_of_a_plain_reading(targets: list[bytes], data: st.DataObject) -> None:
    web = np.array([data.draw(st.booleans()) for _ in targets], np.bool_)
    expected = []
    for line in np.flatnonzero(web).tolist():
        path, _, query = targets[line].partition(b"?")
        for segment in path.split(b"/"):
            if segment.translate(None, _UNRESERVED):
                expected.append((line, _decoded(segment), PATH))
        for part in query.replace(b"+", b" ").split(b"&"):
            name, equal, value = part.partition(b"=")
            if not equal or _decoded(name).translate(None, _UNRESERVED + b"[]"):
                value = part
            if value:
                expected.append((line, _decoded(value), QUERY))
    assert _texts(values_of(targets, web)) == expected


def _decoded(text: bytes) -> bytes:
    return unquote_to_bytes(unquote_to_bytes(text))


def test_what_is_no_request_has_no_values() -> None:
    values = values_of([b"user?id=<b>", b"/x?a=1"], np.array([False, True]))
    assert _texts(values) == [(1, b"1", QUERY)]


def test_long_values_and_long_targets_are_cut_and_end_in_a_class_of_their_own() -> None:
    fits = b"b" * VALUE_BYTES
    values = _values([b"/x?a=" + fits + b"&b=" + fits + b"b&c=d", b"/?a=1&b=" + b"%41" * TARGET_BYTES, b"/?a=1"])
    assert [text for _, text, _ in _texts(values)] == [fits, fits, b"d", b"1", b"A" * VALUE_BYTES, b"1"]
    assert values.codes[values.offsets[1:] - 1].tolist() == [EDGE, CUT, EDGE, EDGE, CUT, EDGE]
    beyond = _values([b"/?a=" + b"c&a=" * TARGET_BYTES, b"/<" + b"/" * TARGET_BYTES + b"?a=1"])
    # What lies beyond the cut is not seen; a value that ends before it is whole.
    assert len(beyond.lines) == TARGET_BYTES // 4
    assert np.flatnonzero(beyond.codes[beyond.offsets[1:] - 1] == CUT).tolist() == []
    assert _texts(beyond)[-1] == (1, b"<", PATH)


def _plain_score(counts: Counter[tuple[int, ...]], codes: Sequence[int]) -> float:
    """Of one value with its frame, `counts` being those of all 1-, 2- and 3-grams and their contexts' successors."""

    def p(context: tuple[int, ...], code: int) -> float:
        lower = p(context[1:], code) if context else 1 / CLASSES
        following = [math.sqrt(counts[(*context, other)]) for other in range(CLASSES)]
        n, types = sum(following), sum(count > 0 for count in following)
        if n == 0 and context:
            return lower
        return (following[code] + max(types, 1) * lower) / (n + max(types, 1))

    surprises = [-math.log(p((codes[i - 2], codes[i - 1]), codes[i])) for i in range(2, len(codes))]
    worst = sorted(surprises)[-WORST:]
    return sum(worst) / len(worst)


@given(st.lists(st.text("ab1<' ", max_size=8).map(str.encode), max_size=6), st.binary(min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_score_is_the_mean_of_the_worst_surprises_by_witten_and_bell_on_damped_counts(
    known: list[bytes], value: bytes
) -> None:
    taught = _values(_query(known))
    counts: Counter[tuple[int, ...]] = Counter()
    for begin, end in zip(taught.offsets[:-1].tolist(), taught.offsets[1:].tolist(), strict=True):
        codes = taught.codes[begin:end].tolist()
        for i in range(2, len(codes)):
            counts.update(tuple(codes[i - order : i + 1]) for order in range(3))
    model = _taught(_query(known))
    asked = _values([b"/x?q=" + "".join(f"%25{byte:02x}" for byte in value).encode()])
    expected = _plain_score(counts, asked.codes.tolist())
    assert model.scores(asked, 1)[0] == pytest.approx(expected, abs=2e-6)


def test_a_model_that_knows_nothing_finds_every_value_alike() -> None:
    scores = _scores(ValueModel(), _query([b"a", b"' or 1=1 --", b"\0" * 99, b"anna"]))
    assert scores == [pytest.approx(math.log(CLASSES), abs=1e-6)] * 4
    assert len(set(scores)) == 1


def test_a_line_has_the_score_of_its_strangest_value_and_none_without_values() -> None:
    model = _taught(_query([b"anna", b"bert", b"42", b"2016-03-01"] * 9))
    alone = _scores(model, [b"/?a=anna", b"/?a=<b>"])
    assert alone[0] < alone[1]
    assert _scores(model, [b"/?a=anna&b=<b>&c=42", b"/plain", b"/?c=anna"]) == [alone[1], 0.0, alone[0]]
    assert model.scores(_values([]), 3).tolist() == [0.0, 0.0, 0.0]


def test_an_attack_in_the_path_is_found_and_odd_paths_do_not_excuse_odd_queries() -> None:
    usual = [b"/tags/life%%20hacks?page=%d" % page for page in range(300)]
    odd_paths = [b"/tags/<b>'x'</b>?page=1"] * 300
    model, lenient = _taught(usual), _taught(usual + odd_paths)
    scores = _scores(model, [b"/tags/star%20wars?page=7", b"/tags/<script>?page=7", b"/tags?page=<b>'x'</b>"])
    assert scores[0] < scores[1] / 2
    assert _scores(lenient, [b"/tags?page=<b>'x'</b>"])[0] >= scores[2]


lines_drawn = st.lists(st.binary(max_size=12).map(lambda tail: b"/%20?a=1&b=" + tail), min_size=1, max_size=12)


@given(lines_drawn, lines_drawn, st.data())
@settings(max_examples=60, deadline=None)
def test_scores_have_the_same_bits_in_any_batch_and_with_any_memory(
    known: list[bytes], asked: list[bytes], data: st.DataObject
) -> None:
    model = _taught(known)
    whole = _scores(model, asked)
    cut = data.draw(st.integers(0, len(asked)))
    cold = ValueModel.load(model.export())
    assert _scores(cold, asked[cut:]) + _scores(cold, asked[:cut]) == whole[cut:] + whole[:cut]
    assert [_scores(ValueModel.load(model.export()), [target])[0] for target in asked] == whole


@given(lines_drawn, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_learning_changes_nothing(known: list[bytes], chance: object) -> None:
    shuffled = list(known)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    one_by_one = ValueModel()
    for target in shuffled:
        one_by_one.learn(_values([target]), _all(1))
    assert digest(_taught(known).export()) == digest(_taught(shuffled).export()) == digest(one_by_one.export())


def test_only_marked_lines_are_learned_and_scoring_learns_nothing() -> None:
    targets = _query([b"anna", b"<script>", b"bert"])
    keep = np.array([True, False, True])
    model = ValueModel()
    model.learn(_values(targets), keep)
    before = digest(model.export())
    assert before == digest(_taught([targets[0], targets[2]]).export())
    _scores(model, targets)
    model.explain(_values(targets), 1)
    model.learn(_values(targets), np.zeros(3, np.bool_))
    assert digest(model.export()) == before


def test_a_loaded_model_continues_as_the_exported_one() -> None:
    model = _taught(_query([b"anna", b"x@y.org"] * 50))
    other = ValueModel.load(model.export())
    for each in (model, other):
        each.learn(_values(_query([b"1,2"])), _all(1))
    assert digest(model.export()) == digest(other.export())
    assert _scores(model, _query([b"1;2"])) == _scores(other, _query([b"1;2"]))


def test_an_export_is_not_changed_by_later_learning() -> None:
    model = _taught(_query([b"anna"]))
    state = model.export()
    before = digest(state)
    model.learn(_values(_query([b"bert"])), _all(1))
    assert digest(state) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda counts: counts.astype(np.int64),
        lambda counts: counts[:, :-1],
        lambda counts: counts.reshape(-1),
        lambda counts: counts - 1,
        lambda counts: None,
    ],
)
def test_what_is_no_export_is_refused(damage: object) -> None:
    counts = ValueModel().export()["counts"]
    with pytest.raises((TypeError, ValueError)):
        ValueModel.load({"counts": damage(counts)})  # type: ignore[operator]
    with pytest.raises(KeyError):
        ValueModel.load({})


def test_what_does_not_come_again_fades_and_counts_stay_bounded() -> None:
    model = _taught(_query([b"<old>"] * 1000))
    fresh = _scores(model, _query([b"<old>"]))[0]
    much = _values(_query([b"n" * VALUE_BYTES] * 1000))
    for _ in range(40):  # ten times the limit
        model.learn(much, _all(1000))
    counts = np.asarray(model.export()["counts"])
    assert counts.sum() <= HALVED_ABOVE
    assert _scores(model, _query([b"<old>"]))[0] > fresh + 3
    assert _scores(model, _query([b"nn"]))[0] < _scores(model, _query([b"<old>"]))[0]


def test_an_explanation_shows_where_in_the_value_the_odd_characters_are() -> None:
    model = _taught(_query([b"anna", b"bert ode", b"42", b"nora@mail.org"] * 99))
    values = _values([b"/x?a=anna&b=nora%2540mail.org&c=anna'||bert&d=42", b"/plain"])
    found = model.explain(values, 0)
    assert found is not None
    assert (found.value, found.kind) == (b"anna'||bert", QUERY)
    assert found.score == model.scores(values, 2)[0]
    assert (found.start, found.end, found.characters) == (4, 7, b"'||")
    assert found.places == (4, 5, 6)
    assert model.explain(values, 1) is None


def test_an_end_that_comes_too_early_is_shown_as_the_end() -> None:
    model = _taught(_query([b"2016-03-01"] * 99))
    found = model.explain(_values(_query([b"2016-"])), 0)
    assert found is not None
    assert len(found.value) in found.places
    assert found.end == 5


def test_of_equally_strange_values_the_first_is_shown() -> None:
    found = ValueModel().explain(_values([b"/?a=one&b=two"]), 0)
    assert found is not None and found.value == b"one"


@pytest.mark.parametrize(
    "target",
    [
        b"/x?q=" + b"a" * 65536,
        b"/x?q=" + b"%25" * 21845,
        b"/x?" + b"&" * 65536,
        b"/x?" + b"a&" * 32768,
        b"/" + b"%/" * 32768,
        b"?" * 65536,
        b"\0" * 65536,
        b"/x?q=" + b"\xff\xc0\x80" * 21845,
        b"/x?q=" + b"%00" * 21845,
        b"%" * 65536,
    ],
)
def test_a_hostile_target_costs_no_more_than_its_beginning(target: bytes) -> None:
    model = _taught(_query([b"anna"]))
    tracemalloc.start()
    try:
        values = _values([target] * 8)
        scores = model.scores(values, 8)
        model.learn(values, _all(8))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.isfinite(scores).all()
    assert len(set(scores.tolist())) == 1
    assert peak < 8 * TARGET_BYTES * 150 + (2 << 20)


def test_a_million_distinct_values_leave_a_state_of_the_same_size() -> None:
    model = ValueModel()
    for batch in range(20):
        lines = range(batch * 1000, batch * 1000 + 1000)
        model.learn(
            _values([b"/?" + b"&".join(b"v=%x" % (line * 997 + i) for i in range(50)) for line in lines]), _all(1000)
        )
    size = sum(np.asarray(column).nbytes for column in model.export().values())
    assert size == sum(np.asarray(column).nbytes for column in ValueModel().export().values()) <= 512 << 10


@pytest.mark.skipif(not PAYLOADS.exists(), reason=f"needs {PAYLOADS}")
@pytest.mark.parametrize(("learned", "recall"), [(100, 0.98), (None, 0.995)])
def test_attacks_on_forms_stand_out_from_the_values_of_forms(learned: int | None, recall: float) -> None:
    with gzip.open(PAYLOADS) as file:
        rows = [row for row in map(json.loads, file) if row["src"] == "HttpParamsDataset"]
    targets = _query([row["payload"].encode("utf-8", "surrogatepass") for row in rows])
    usual = [target for target, row in zip(targets, rows, strict=True) if not row["label"]]
    attacks = [target for target, row in zip(targets, rows, strict=True) if row["label"]]
    usual.sort(key=lambda target: sha256(target).digest())
    half = len(usual) // 2
    model = _taught(usual[:half][:learned])
    threshold = np.quantile(_scores(model, usual[half:]), 0.999)
    assert np.mean(np.array(_scores(model, attacks)) > threshold) >= recall
