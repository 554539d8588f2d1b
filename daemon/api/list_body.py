"""Answers that are long lists: encoded piece by piece, as the client reads.

Encoding megabytes at once would hold up everything else, in a thread too, for the encoder does not let go of the
interpreter's lock.
"""

from collections.abc import AsyncIterator, Generator, Sequence
from types import TracebackType
from typing import Any

from quart.wrappers.response import ResponseBody

from daemon.api.json_bodies import encode_answer

PIECE_BYTES = 32 * 1024  # takes a fraction of a millisecond


class ListBody(ResponseBody):
    """One response body: a JSON object of the list `items`, called `name`, and the fields of `rest` after it."""

    def __init__(self, name: str, items: Sequence[Any], rest: dict[str, Any]) -> None:
        self._pieces = _encoded_pieces(name, items, rest)

    async def __aenter__(self) -> "ListBody":
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._pieces.close()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


def _encoded_pieces(name: str, items: Sequence[Any], rest: dict[str, Any]) -> Generator[bytes, None, None]:
    piece = bytearray(b"{%s:[" % encode_answer(name))
    for number, item in enumerate(items):
        if number:
            piece += b","
        piece += encode_answer(item)
        if len(piece) >= PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    piece += b"]"
    for field, value in rest.items():
        piece += b",%s:%s" % (encode_answer(field), encode_answer(value))
    yield bytes(piece + b"}\n")
