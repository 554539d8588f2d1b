"""Inputs that are almost right: a valid one, cut, flipped, spliced, with pieces put in, left out, doubled or repeated.

Random bytes hardly ever get past the first check of a format; what gets past it and is wrong
is made from what is right.
"""

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

MOST_BYTES = 1 << 16
_MOST_CHANGES = 5
_MOST_PIECE = 300
# Numbers at the edges of the widths that formats have, and bytes that mean something in a text.
_TELLING = (
    *(value.to_bytes(size, "little") for size in (1, 4, 8) for value in (0, 1, (1 << 8 * size) - 1, 1 << 8 * size - 1)),
    *(bytes([byte]) for byte in b"\n\r\t \"'\\[]{}()=:,.#%<>|-+09aZ\x7f\x80\xc3\xff"),
    "\u2028\ud7ff\uffff".encode(),
)

Change = Callable[[st.DrawFn, bytes, Sequence[bytes]], bytes]


@st.composite
def inputs(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Mostly one of `seeds` with a few changes, now and then any bytes; at most MOST_BYTES long."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=_MOST_PIECE))
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, _MOST_CHANGES))):
        data = draw(st.sampled_from(_CHANGES))(draw, data, seeds)[:MOST_BYTES]
    return data


def _place(draw: st.DrawFn, data: bytes) -> int:
    return draw(st.integers(0, len(data)))


def _piece(draw: st.DrawFn, data: bytes) -> tuple[int, int]:
    """Where a piece of `data` begins and ends; mostly it is short."""
    start = _place(draw, data)
    return start, min(start + draw(st.integers(0, _MOST_PIECE)), len(data))


def _flipped(draw: st.DrawFn, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    if not data:
        return data
    bit = draw(st.integers(0, 8 * len(data) - 1))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _cut_off(draw: st.DrawFn, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    return data[: _place(draw, data)]


def _left_out(draw: st.DrawFn, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    start, stop = _piece(draw, data)
    return data[:start] + data[stop:]


def _put_in(draw: st.DrawFn, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    at = _place(draw, data)
    return data[:at] + draw(st.one_of(st.sampled_from(_TELLING), st.binary(max_size=20))) + data[at:]


def _overwritten(draw: st.DrawFn, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    at, new = _place(draw, data), draw(st.sampled_from(_TELLING))
    return data[:at] + new + data[at + len(new) :]


def _doubled(draw: st.DrawFn, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    start, stop = _piece(draw, data)
    return data[:stop] + data[start:]


def _repeated(draw: st.DrawFn, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    """A short piece so often that work which grows with a square shows."""
    start = _place(draw, data)
    stop = min(start + draw(st.integers(1, 8)), len(data))
    return data[:start] + data[start:stop] * draw(st.sampled_from((2, 100, 5000, MOST_BYTES))) + data[stop:]


def _moved(draw: st.DrawFn, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    start, stop = _piece(draw, data)
    rest = data[:start] + data[stop:]
    at = _place(draw, rest)
    return rest[:at] + data[start:stop] + rest[at:]


def _spliced(draw: st.DrawFn, data: bytes, seeds: Sequence[bytes]) -> bytes:
    other = draw(st.sampled_from(seeds))
    return data[: _place(draw, data)] + other[_place(draw, other) :]


_CHANGES: tuple[Change, ...] = (
    _flipped,
    _cut_off,
    _left_out,
    _put_in,
    _overwritten,
    _doubled,
    _repeated,
    _moved,
    _spliced,
)
