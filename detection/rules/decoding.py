"""Decoding: one canonical spelling of a field for the rules, whichever of many encodings the attacker chose.

    cut          the first `FIELD_BYTES` bytes, so that hostile lines stay cheap; the rest is ignored
    plus         in the query of a target, `+` becomes a space
    escapes      `%41`, `%u0041`, and the escapes that logs and scripts use (`\\x41`, `\\u0041`, `\\u{41}`,
                 `\\"`); up to `PASSES` times, since each hop of a request may decode it once more
    overlong     sequences that lenient decoders read as ASCII: `C0 AE`, `E0 80 AE`, full-width letters
    fold         letters to lower case; control bytes (NUL too) are removed, tabs, vertical tabs and form feeds
                 become spaces, CR and LF stay
    entities     `&#60;`, `&#x3c;`, `&lt;`
    comments     what SQL treats as white space: `/**/`, `/* word */`, `/*!50000`, `*/`; and between words
                 `--word` and `#word` up to the line break, which stays

Most real fields need no decoding and cost only a few substring searches. The result is never longer than the
field and depends on the field alone.
"""

import re
from urllib.parse import unquote_to_bytes

FIELD_BYTES = 4096
PASSES = 8


def decode_field(field: bytes, *, query: bool) -> bytes:
    """`field` as rules see it. With `query` it is a request target, and `+` behind its `?` is a space."""
    text = field[:FIELD_BYTES]
    if query and b"+" in text:
        path, mark, rest = text.partition(b"?")
        text = path + mark + rest.replace(b"+", b" ")
    if b"%" in text or b"\\" in text:
        text = _decode_escapes(text)
    if not text.isascii():
        text = _OVERLONG.sub(_ascii_of_overlong, text)
    text = text.translate(_FOLD, _REMOVED)
    if b"&" in text:
        text = _ENTITY.sub(_character_of_entity, text)
    if b"*" in text:
        text = _COMMENT.sub(b" ", text)
    if b"\n" in text and (b"--" in text or b"#" in text):
        text = _LINE_COMMENTS.sub(_without_sql_comments, text)
    return text


# Python's `re` is safe with these: no pattern can match the same byte in two ways, so none backtracks for long.
_PERCENT_U = re.compile(rb"%[uU]([0-9a-fA-F]{4})")
_BACKSLASH = re.compile(rb'\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}|")')
_OVERLONG = re.compile(
    rb"[\xc0\xc1]([\x00-\xbf])|\xe0([\x80\x81])([\x80-\xbf])|\xef(?:\xbc([\x81-\xbf])|\xbd([\x80-\x9e]))"
)
_ENTITY = re.compile(rb"&(?:#x([0-9a-f]{1,6});?|#([0-9]{1,7});?|([a-z]{2,7});)")
_COMMENT = re.compile(rb"/\*(?:!\d{0,6}|[a-z0-9 _.,-]*\*/|\s*\*/)|\*/")
# Possessive, so that it stays linear. Only one word is taken for a comment: what is removed no rule can see.
_LINE_COMMENTS = re.compile(rb"(?<=[a-z_)'\"`*])(?:\s*+(?:--|#)[ -]*+(?:[a-z_][a-z0-9_]*+|[0-9]*+)[ \r]*+\n)+\s*+")

_CONTINUES = re.compile(rb"[a-z0-9_('\"`*@]")

_NAMED = {
    b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'", b"amp": b"&", b"nbsp": b" ", b"tab": b" ",
    b"newline": b"\n", b"colon": b":", b"semi": b";", b"lpar": b"(", b"rpar": b")", b"lcub": b"{", b"rcub": b"}",
    b"sol": b"/", b"bsol": b"\\", b"equals": b"=", b"grave": b"`", b"excl": b"!", b"dollar": b"$", b"period": b".",
}  # fmt: skip
_LOOKALIKES = {0x2044: b"/", 0x2215: b"/", 0x2216: b"\\", 0x2024: b"."}

_REMOVED = bytes([*range(0x09), *range(0x0E, 0x20), 0x7F])
_FOLD = bytes(range(256)).lower().translate(bytes.maketrans(b"\t\v\f", b"   "))


def _decode_escapes(text: bytes) -> bytes:
    """Decode percent and backslash escapes, also of escapes, at most PASSES times."""
    for _ in range(PASSES):
        before = text
        if b"%" in text:
            text = unquote_to_bytes(_PERCENT_U.sub(_byte_of_escape, text))
        if b"\\" in text:
            text = _BACKSLASH.sub(_byte_of_escape, text)
        if text == before:
            break
    return text


def _byte_of_escape(match: re.Match[bytes]) -> bytes:
    """What one percent-u or backslash escape stands for."""
    if not match.lastindex:
        return b'"'
    digits = match[match.lastindex]
    # Two digits are a byte, except in braces, where they are a character.
    return (
        bytes([int(digits, 16)]) if len(digits) == 2 and match.lastindex == 1 else _bytes_of_character(int(digits, 16))
    )


def _bytes_of_character(code: int) -> bytes:
    """A code point as bytes: as ASCII if it looks like a character of ASCII, otherwise in UTF-8."""
    if 0xFF01 <= code <= 0xFF5E:
        code -= 0xFEE0  # full-width forms of ASCII
    if code < 0x80:
        return bytes([code])
    return _LOOKALIKES.get(code) or (chr(code).encode(errors="replace") if code < 0x110000 else b"")


def _ascii_of_overlong(match: re.Match[bytes]) -> bytes:
    """The ASCII character that an overlong UTF-8 sequence or a full-width form stands for."""
    two, *three, quotes, letters = match.groups()
    if two is not None:
        low = two[0]
        return two if low < 0x80 else bytes([(match[0][0] & 1) << 6 | low & 0x3F])
    if three[0] is not None:
        return bytes([(three[0][0] & 1) << 6 | three[1][0] & 0x3F])
    return bytes([quotes[0] - 0x60 if quotes else letters[0] - 0x20])


def _character_of_entity(match: re.Match[bytes]) -> bytes:
    """The character that an HTML entity stands for."""
    hexadecimal, decimal, name = match.groups()
    if name is not None:
        return _NAMED.get(name, match[0])
    code = int(hexadecimal, 16) if hexadecimal else int(decimal)
    return _bytes_of_character(code).lower() if code else b""


def _without_sql_comments(match: re.Match[bytes]) -> bytes:
    """A newline in place of the comments if a query continues behind them; otherwise the match unchanged."""
    return b"\n" if _CONTINUES.match(match.string, match.end()) else match[0]
