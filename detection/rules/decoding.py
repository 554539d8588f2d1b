"""What a rule sees of a field: one plain spelling of the many that attackers use.

    cut          the first `FIELD_BYTES` bytes: hostile lines stay cheap, and what lies beyond is not looked at
    plus         in the query of a target, `+` becomes a space
    escapes      `%41`, `%u0041`, and what logs and scripts write for odd bytes (`\\x41`, `\\u0041`, `\\u{41}`,
                 `\\"`); up to `PASSES` times, since each hop of a request may decode once
    overlong     bytes that sloppy decoders read as ASCII: `C0 AE`, `E0 80 AE`, full-width letters
    fold         letters to lower case; control bytes dropped (NUL too), tabs and their like become spaces,
                 CR and LF stay
    entities     `&#60;`, `&#x3c;`, `&lt;`
    comments     what SQL takes for white space: `/**/`, `/* word */`, `/*!50000`, `*/`; and between words
                 `--word` and `#word` up to the line break, which stays

Most real fields are plain already and pay for a few substring searches only. The result is never longer
than the field, and depends on nothing else.
"""

import re
from urllib.parse import unquote_to_bytes

FIELD_BYTES = 4096
PASSES = 8


def decode(field: bytes, *, query: bool) -> bytes:
    """`field` as rules see it; `query` says that it is a request target, whose `+` may mean a space."""
    text = field[:FIELD_BYTES]
    if query and b"+" in text:
        path, mark, rest = text.partition(b"?")
        text = path + mark + rest.replace(b"+", b" ")
    if b"%" in text or b"\\" in text:
        text = _unescaped(text)
    if not text.isascii():
        text = _OVERLONG.sub(_ascii, text)
    text = text.translate(_FOLD, _DROPPED)
    if b"&" in text:
        text = _ENTITY.sub(_entity, text)
    if b"*" in text:
        text = _COMMENT.sub(b" ", text)
    if b"\n" in text and (b"--" in text or b"#" in text):
        text = _LINE_COMMENTS.sub(_line_break, text)
    return text


# The standard `re` is safe with these: no pattern can match one byte in two ways.
_PERCENT_U = re.compile(rb"%[uU]([0-9a-fA-F]{4})")
_BACKSLASH = re.compile(rb'\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}|")')
_OVERLONG = re.compile(
    rb"[\xc0\xc1]([\x00-\xbf])|\xe0([\x80\x81])([\x80-\xbf])|\xef(?:\xbc([\x81-\xbf])|\xbd([\x80-\x9e]))"
)
_ENTITY = re.compile(rb"&(?:#x([0-9a-f]{1,6});?|#([0-9]{1,7});?|([a-z]{2,7});)")
_COMMENT = re.compile(rb"/\*(?:!\d{0,6}|[a-z0-9 _.,-]*\*/|\s*\*/)|\*/")
# Possessive, so that it stays linear. Only one word is taken for a comment: what is removed no rule can see.
_LINE_COMMENTS = re.compile(rb"(?<=[a-z_)'\"`*])(?:\s*+(?:--|#)[ -]*+(?:[a-z_][a-z0-9_]*+|[0-9]*+)[ \r]*+\n)+\s*+")

_GOES_ON = re.compile(rb"[a-z0-9_('\"`*@]")

_NAMED = {
    b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'", b"amp": b"&", b"nbsp": b" ", b"tab": b" ",
    b"newline": b"\n", b"colon": b":", b"semi": b";", b"lpar": b"(", b"rpar": b")", b"lcub": b"{", b"rcub": b"}",
    b"sol": b"/", b"bsol": b"\\", b"equals": b"=", b"grave": b"`", b"excl": b"!", b"dollar": b"$", b"period": b".",
}  # fmt: skip
_LOOKALIKES = {0x2044: b"/", 0x2215: b"/", 0x2216: b"\\", 0x2024: b"."}

_DROPPED = bytes([*range(0x09), *range(0x0E, 0x20), 0x7F])
_FOLD = bytes(range(256)).lower().translate(bytes.maketrans(b"\t\v\f", b"   "))


def _unescaped(text: bytes) -> bytes:
    for _ in range(PASSES):
        before = text
        if b"%" in text:
            text = unquote_to_bytes(_PERCENT_U.sub(_code_unit, text))
        if b"\\" in text:
            text = _BACKSLASH.sub(_code_unit, text)
        if text == before:
            break
    return text


def _code_unit(match: re.Match[bytes]) -> bytes:
    if not match.lastindex:
        return b'"'
    digits = match[match.lastindex]
    # Two digits are a byte, except in braces, where they are a character.
    return bytes([int(digits, 16)]) if len(digits) == 2 and match.lastindex == 1 else _character(int(digits, 16))


def _character(code: int) -> bytes:
    if 0xFF01 <= code <= 0xFF5E:
        code -= 0xFEE0  # full-width forms of ASCII
    if code < 0x80:
        return bytes([code])
    return _LOOKALIKES.get(code) or (chr(code).encode(errors="replace") if code < 0x110000 else b"")


def _ascii(match: re.Match[bytes]) -> bytes:
    two, *three, quotes, letters = match.groups()
    if two is not None:
        low = two[0]
        return two if low < 0x80 else bytes([(match[0][0] & 1) << 6 | low & 0x3F])
    if three[0] is not None:
        return bytes([(three[0][0] & 1) << 6 | three[1][0] & 0x3F])
    return bytes([quotes[0] - 0x60 if quotes else letters[0] - 0x20])


def _entity(match: re.Match[bytes]) -> bytes:
    hexadecimal, decimal, name = match.groups()
    if name is not None:
        return _NAMED.get(name, match[0])
    code = int(hexadecimal, 16) if hexadecimal else int(decimal)
    return _character(code).lower() if code else b""


def _line_break(match: re.Match[bytes]) -> bytes:
    """A line break for the comments, where a query goes on behind them; else what stands there."""
    return b"\n" if _GOES_ON.match(match.string, match.end()) else match[0]
