"""The text of a vouched file: UTF-16 and UTF-32 become UTF-8, and what is not text is refused.

An archive or a pickle has newlines, too: taken for a log it is thousands of lines that count as normal.
"""

import codecs

from daemon.control.control_interface import ControlError

# At the beginning of a file or, for tar, further in.
_FORMATS = (
    (0, b"PK\x03\x04", "a zip archive (as models of PyTorch and office documents are, too)"),
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"\xfd7zXZ\x00", "xz data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data"),
    (0, b"BZh", "bzip2 data"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (257, b"ustar", "a tar archive"),
    *((0, b"\x80%c" % protocol, "a pickle") for protocol in range(2, 6)),
)
_HEAD_BYTES = 512
# The longer ones first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_MARK_BYTES = 4
# What text is not full of: control characters but for white space and the escape of terminal colours.
_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b"))
_CONTROL_SHARE = 0.05  # random bytes have 10 %, UTF-16 without a mark half
_FEW_CONTROL = 16  # so many are no proof in a small chunk
_COUNTED_BYTES = 1 << 16  # the share is that in so much, or in a chunk if that is more


class VouchedText:
    """Takes the bytes of one file in chunks, and gives them back as text."""

    def __init__(self) -> None:
        self._head = b""
        self._waiting = b""  # too few bytes to tell the encoding
        self._decoder: codecs.IncrementalDecoder | None = None
        self._begun = False
        self._control = self._counted = 0

    def text_in_chunk(self, data: bytes, last: bool) -> bytes:
        """The text in the next `data`, which may lack its end until more comes; the rest of it with `last`.

        Bytes of an unknown encoding stay as they are. Raises ControlError 415 "not_text".
        """
        if len(self._head) < _HEAD_BYTES:
            self._head = (self._head + data)[:_HEAD_BYTES]
            for place, magic, what in _FORMATS:
                if self._head.startswith(magic, place):
                    raise _not_text_refusal(f"this is {what}, not text; unpack it, and send the log that is in it")
        data, self._waiting = self._waiting + data, b""
        if not self._begun:
            if len(data) < _MARK_BYTES and not last:
                self._waiting = data
                return b""
            self._begun = True
            encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
            self._decoder = None if encoding is None else codecs.getincrementaldecoder(encoding)("surrogateescape")
        text = data if self._decoder is None else _recoded_as_utf8(self._decoder, data, last)
        self._refuse_binary(text)
        return text

    def _refuse_binary(self, text: bytes) -> None:
        self._control += len(text) - len(text.translate(None, _CONTROL))
        self._counted += len(text)
        if self._control > max(_FEW_CONTROL, _CONTROL_SHARE * self._counted):
            raise _not_text_refusal(
                f"this is not text: {self._control / self._counted:.0%} of it are NUL and other control characters; "
                "send the log as UTF-8, or as UTF-16 with a byte order mark"
            )
        if self._counted >= _COUNTED_BYTES:
            self._control = self._counted = 0


def _recoded_as_utf8(decoder: codecs.IncrementalDecoder, data: bytes, last: bool) -> bytes:
    try:
        return decoder.decode(data, last).encode("utf-8", "surrogateescape")
    except UnicodeError as exc:
        raise _not_text_refusal(f"this begins like UTF-16 or UTF-32, and is not: {exc}") from exc


def _not_text_refusal(message: str) -> ControlError:
    return ControlError(415, "not_text", message)
