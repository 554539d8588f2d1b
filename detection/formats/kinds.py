"""Entry point of this package: recognise the format of a connection's lines and parse them into columns."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from detection.formats import access, logfmt, syslog, timestamped, wrapped
from detection.formats.fields import Fields


def _parse_plain(lines: Sequence[bytes], clock: float) -> Fields:
    return timestamped.parse_timestamped(lines, clock, inside=False, kind="plain")


def _looks_like_json(line: bytes) -> bool:
    return line[:1] == b"{" and line.rstrip()[-1:] == b"}"


# The more specific first: a container or syslog line may contain an access line, and a syslog line begins with a time.
_FITS: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("json", _looks_like_json),
    ("container", wrapped.fits_container),
    ("syslog", syslog.fits_syslog),
    ("access", lambda line: access.match_access_line(line) is not None),
    ("logfmt", logfmt.fits_logfmt),
    ("timestamped", timestamped.fits_timestamped),
)
_PARSERS: dict[str, Callable[[Sequence[bytes], float], Fields]] = {
    "json": wrapped.parse_json_lines,
    "container": wrapped.parse_container,
    "access": access.parse_access,
    "syslog": syslog.parse_syslog,
    "logfmt": logfmt.parse_logfmt,
    "timestamped": timestamped.parse_timestamped,
    "plain": _parse_plain,
}
KINDS: tuple[str, ...] = tuple(_PARSERS)

# A share of the lines that are not blank. Low, because a traceback has many lines for each line with a time.
_MIN_SHARE = 0.2


def recognise(lines: Sequence[bytes]) -> str:
    """The kind that most of a connection's first lines (1 to 64) fit; "plain" if fewer than a fifth fit any one."""
    fitting = dict.fromkeys(_PARSERS, 0)
    filled = 0
    for line in lines:
        if not line.strip():
            continue
        filled += 1
        if (kind := _kind_of_line(line)) != "plain":
            fitting[kind] += 1
    best = max(fitting, key=fitting.__getitem__)
    return best if fitting[best] >= max(1.0, _MIN_SHARE * filled) else "plain"


def parse_each_by_own_kind(
    kind: str, lines: Sequence[bytes], *, clock: float
) -> list[tuple[NDArray[np.int64], Fields]]:
    """Like `parse_as_kind`, but access lines among other lines are parsed as such, and other lines among access lines
    as their own kind: one connection may carry several logs. Returns rows and their columns; each row occurs once.
    """
    fields = parse_as_kind(kind, lines, clock=clock)
    if kind == "access":
        others = {row: _kind_of_line(lines[row]) for row in access.rows_unlike_access(fields)}
    else:
        others = {row: "access" for row, line in enumerate(lines) if b'] "' in line and _kind_of_line(line) == "access"}
    if not others:
        return [(np.arange(len(lines)), fields)]
    stay = np.array([row for row in range(len(lines)) if row not in others], dtype=np.int64)
    read = [(stay, fields.only(stay))]
    for own in sorted(set(others.values())):
        rows = np.array([row for row, its in others.items() if its == own])
        read.append((rows, parse_as_kind(own, [lines[row] for row in rows.tolist()], clock=clock)))
    return read


def _kind_of_line(line: bytes) -> str:
    return next((kind for kind, fits in _FITS if fits(line)), "plain")


def parse_as_kind(kind: str, lines: Sequence[bytes], *, clock: float) -> Fields:
    """`lines`, bytes without newline, as columns; each line is parsed on its own, regardless of its neighbours.

    `kind` is one of `KINDS`, otherwise KeyError. No input bytes make it raise: a line that does not fit its kind
    has no time (nan) and no key, and its contents and target are the line itself. `clock` is the log clock or the
    time of receipt, in seconds: it supplies the year (or day) that a line's time omits. If it is nan, so are such
    times.
    """
    return _PARSERS[kind](lines, clock)
