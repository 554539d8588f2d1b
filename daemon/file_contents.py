"""What the bytes of a file are: text, or an archive, a pickle or other binary data that newlines do not make a log.

Taken for a log, a model file is thousands of lines; vouched for, they count as normal.
"""

import codecs
import pickletools
import re

# Compressed data by its first bytes: it is unpacked by vigilctl (`daemon/client/unpacking.py`), and not by the daemon.
COMPRESSED = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "bzip2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    # A frame, or one that is to be skipped, with which parallel compressors begin.
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}
ZIP = re.compile(rb"PK\x03\x04|PK\x05\x06")
LONGEST_MAGIC = 10  # bytes of the longest of those above
HEAD_BYTES = 4096  # of a file are enough for `binary_kind`

_BINARY = (
    (ZIP, "a zip archive (as models of PyTorch and office documents are, too)"),
    *((magic, f"{name} data") for name, magic in COMPRESSED.items()),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive"),
    (re.compile(rb"Rar!\x1a\x07"), "a rar archive"),
    (re.compile(rb"\x04\x22\x4d\x18"), "lz4 data"),
    (re.compile(rb"(?s:.{257})ustar(?:\x00| {2}\x00)"), "a tar archive"),
    (re.compile(rb"\x80[\x02-\x05]"), "a pickle"),
    (re.compile(rb"\(+(?:[IFL]-?[0-9][0-9.e+-]*L?\n){8}"), "a pickle"),  # a tuple of numbers, without any memo so far
    (re.compile(rb"\x93NUMPY"), "an array of NumPy"),
    (re.compile(rb"\x89HDF\r\n"), "an HDF5 file (as models of Keras are, too)"),
    (re.compile(rb"SQLite format 3\x00"), "a database of SQLite"),
    (re.compile(rb"LPKSHHRH"), "a journal of systemd (journalctl -o short-iso --file prints it as text)"),
    (re.compile(rb"\x7fELF"), "a program"),
)
_PICKLE_OPENING = 64  # operations, within which a pickle of protocol 0 or 1 notes its first value

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
# Counted block by block, so that binary data behind much text is found, too.
BLOCK_BYTES = 4096
_CONTROL_SHARE = 0.05  # random bytes have 10 %, UTF-16 without a mark half
_FEW_CONTROL = 16  # so many are no proof in the beginning of a block


class NotTextError(ValueError):
    """The message is one sentence: what it is, and what to do."""


def binary_kind(head: bytes) -> str | None:
    """What a file that begins with `head` is, with its article, if it is known not to be text."""
    for magic, kind in _BINARY:
        if magic.match(head):
            return kind
    return "a pickle" if _is_old_pickle(head) else None


def _is_old_pickle(head: bytes) -> bool:
    """Whether these are the operations of a pickle of protocol 0 or 1, which has no magic bytes, up to its first memo.

    Nothing is loaded: `pickletools` only tells the operations. The first one takes nothing from the stack, and the memo
    is numbered from 0 (or 1, by Python 2), which hardly a log's first bytes are.
    """
    try:
        for number, (operation, argument, _) in enumerate(pickletools.genops(head)):
            if number == _PICKLE_OPENING or (number == 0 and operation.stack_before):
                return False
            if operation.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                return number > 0 and argument in (0, 1)
    except (ValueError, IndexError, OverflowError):  # no operation, or a broken one, or cut off; UnicodeError is one
        return False
    return False


def control_share(data: bytes) -> float:
    """Which part of `data` are control characters that text does not have; 0 if they are too few to say."""
    control = len(data) - len(data.translate(None, _CONTROL))
    return control / len(data) if control > max(_FEW_CONTROL, _CONTROL_SHARE * len(data)) else 0.0


class TextReader:
    """Takes the bytes of one file in chunks, and gives them back as text: UTF-16 and UTF-32 become UTF-8."""

    def __init__(self) -> None:
        self._head = b""
        self._waiting = b""  # too few bytes to tell the encoding
        self._decoder: codecs.IncrementalDecoder | None = None
        self._begun = False
        self._block = b""  # the beginning of the block that the last chunk ended in

    def text_in_chunk(self, data: bytes, last: bool) -> bytes:
        """The text in the next `data`, which may lack its end until more comes; the rest of it with `last`.

        Bytes of an unknown encoding stay as they are. Raises NotTextError; for a file that is refused in one piece
        it does so however the file is cut.
        """
        if len(self._head) < HEAD_BYTES:
            self._head = (self._head + data)[:HEAD_BYTES]
            if (kind := binary_kind(self._head)) is not None:
                raise NotTextError(f"this is {kind}, not text; unpack it, and send the log that is in it")
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
        waiting = self._block + text
        for start in range(0, len(waiting), BLOCK_BYTES):
            if share := control_share(waiting[start : start + BLOCK_BYTES]):
                raise NotTextError(
                    f"this is not text: {share:.0%} of a part of it are NUL and other control characters; "
                    "send the log as UTF-8, or as UTF-16 with a byte order mark"
                )
        self._block = waiting[len(waiting) // BLOCK_BYTES * BLOCK_BYTES :]


def _recoded_as_utf8(decoder: codecs.IncrementalDecoder, data: bytes, last: bool) -> bytes:
    try:
        return decoder.decode(data, last).encode("utf-8", "surrogateescape")
    except UnicodeError as exc:
        raise NotTextError(f"this begins like UTF-16 or UTF-32, and is not: {exc}") from exc
