"""Styles of written times, and parsing many of them at once.

A style is a fixed-width part with a layout, optionally followed by a fraction, a zone and a year. In a layout each
letter marks the columns of one number: Y year, M month, D day, h m s; bbb is a month's English name; any other
character is a separator. A space in place of a digit counts as 0 ("Jun  9", " 5:13:11").

Times without a zone are UTC. If a style omits the year or the day, the one nearest to the clock is taken. Where day
and month could be confused (`07/11/2022`), no time is read.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CLF = "DD/bbb/YYYY:hh:mm:ss"
ISO = "YYYY-MM-DD hh:mm:ss"
BSD = "bbb DD hh:mm:ss"
BSD_SHORT = "bbb D hh:mm:ss"
EPOCH = "epoch"

_HMS = rb"[ 0-2]\d:[0-5]\d:[0-6]\d"
_MONTH = rb"[JFMASOND][aepuco][nbrylgptvc]"

ISO_PATTERN = rb"\d{4}[-/.][01]\d[-/.][0-3]\d[T \t_-][ 0-2]\d[:.][0-5]\d[:.][0-6]\d"
CLF_PATTERN = rb"[0-3]\d[-/ ]" + _MONTH + rb"[-/ ]\d{4}[: ]" + _HMS
BSD_PATTERN = _MONTH + rb" [ 0-3]\d " + _HMS
BSD_SHORT_PATTERN = _MONTH + rb" \d " + _HMS
FRACTION_PATTERN = rb"[.,]\d{1,9}"
ZONE_PATTERN = (
    rb"Z(?![A-Za-z])| ?[+-][01]\d:?[0-5]\d(?!\d)"
    rb"| (?:UTC|GMT|WEST|WET|CEST|CET|EEST|EET|MSK|EST|EDT|CST|CDT|MST|MDT|PST|PDT)(?![A-Za-z])"
)
_YEAR_PATTERN = rb" (?:19|20)\d\d(?=[\]\s]|$)"

_WEEKDAY = rb"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) )?"
_NEVER = rb"(?!)"

_Style = tuple[str, bytes, bytes, bytes]
_Families = tuple[tuple[bytes, tuple[_Style, ...]], ...]

# Grouped by their beginning, so that most styles need not be tried; the longer first if one is a prefix of another.
# A style: layout, pattern before the fixed part, the fixed part, the year behind it.
_ANYWHERE: _Families = (
    (rb"\d{4}[-/.]", (
        (ISO, rb"", ISO_PATTERN, _NEVER),
        ("YYYY-MM-DD - hh:mm:ss", rb"", rb"\d{4}/[01]\d/[0-3]\d - " + _HMS, _NEVER),
    )),
    (rb"[A-Z][a-z]", (
        ("bbb DD YYYY hh:mm:ss", rb"", _MONTH + rb" [ 0-3]\d (?:19|20)\d\d " + _HMS, _NEVER),
        (BSD, _WEEKDAY, BSD_PATTERN, _YEAR_PATTERN),
        (BSD_SHORT, _WEEKDAY, BSD_SHORT_PATTERN, _YEAR_PATTERN),
    )),
    (rb"\d\d[-/ ][A-Z]", (
        (CLF, rb"", CLF_PATTERN, _NEVER),
        ("DD bbb hh:mm:ss", rb"", rb"[0-3]\d " + _MONTH + rb" " + _HMS, _NEVER),
    )),
    (rb"(?:19|20)\d{6}\D", (
        ("YYYYMMDD-hh:mm:ss", rb"", rb"\d{4}[01]\d[0-3]\d[-T ]" + _HMS, _NEVER),
        ("YYYYMMDD-hhmmss", rb"", rb"\d{4}[01]\d[0-3]\d[-T_. ][0-2]\d[0-5]\d[0-6]\d(?!\d)", _NEVER),
    )),
)  # fmt: skip
# Accepted only at the head of a line.
_AT_HEAD: _Families = (
    (rb"\d{6} ", (
        ("YYMMDD hhmmss", rb"", rb"\d\d[01]\d[0-3]\d [0-2]\d[0-5]\d[0-6]\d(?!\d)", _NEVER),
        ("YYMMDD hh:mm:ss", rb"", rb"\d\d[01]\d[0-3]\d " + _HMS, _NEVER),
    )),
    (rb"\d\d[-/:]", (
        ("YY/MM/DD hh:mm:ss", rb"", rb"\d\d/[01]\d/[0-3]\d " + _HMS, _NEVER),
        ("MM-DD hh:mm:ss", rb"", rb"[01]\d-[0-3]\d " + _HMS, _NEVER),
        ("hh:mm:ss", rb"", rb"[0-2]\d:[0-5]\d:[0-6]\d", _NEVER),
    )),
    (rb"[12]\d{9}", ((EPOCH, rb"", rb"\d{10}(?:\d{9}|\d{6}|\d{3})?(?![\d:])", _NEVER),)),
    (rb"\d{4} ", (("MMDD hh:mm:ss", rb"(?<=[IWEF])", rb"[01]\d[0-3]\d " + _HMS, _NEVER),)),
)  # fmt: skip
_LAYOUTS = [style[0] for _, styles in _ANYWHERE + _AT_HEAD for style in styles]
_GROUPS = 5  # the style itself, its fixed part, fraction, zone and year


def _time_patterns(families: _Families) -> bytes:
    """A regular expression that matches a time of any style of these families."""
    groups = ((begin, rb"|".join(map(_time_pattern, styles))) for begin, styles in families)
    return rb"|".join(rb"(?=%s)(?:%s)" % family for family in groups)


def _time_pattern(style: _Style) -> bytes:
    """A regular expression with a group for each part of a time of this style."""
    _, before, fixed, year = style
    return rb"(%s(%s)(%s)?(%s)?(%s)?)" % (before, fixed, FRACTION_PATTERN, ZONE_PATTERN, year)


# At the head of a line, after at most a bracket, a quote or glog's level letter.
_HEAD = re.compile(rb"[ \t\[(\"#]{0,3}+[IWEF]?(?:" + _time_patterns(_ANYWHERE + _AT_HEAD) + rb")")
_INSIDE = re.compile(rb"(?<![\w./-])(?:" + _time_patterns(_ANYWHERE) + rb")")
_INSIDE_BYTES = 96


def find_time(line: bytes, *, inside: bool = False) -> re.Match[bytes] | None:
    """The time at the head of `line`; with `inside`, failing that, the first one in its first 96 bytes.

    The match is for `Stamps.add`; `time_span(match)` is where the time itself is.
    """
    match = _HEAD.match(line)
    return match if match or not inside else _INSIDE.search(line, 0, _INSIDE_BYTES)


def time_span(match: re.Match[bytes]) -> tuple[int, int]:
    """Start and end in the line of the time that `find_time` found."""
    return match.span(match.lastindex or 0)


class Stamps:
    """Times found in a batch, grouped by layout so that each layout is parsed in one go."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[int, bytes, bytes, bytes, bytes]]] = {}

    def add(self, row: int, match: re.Match[bytes]) -> None:
        """Add the time that `find_time` found on line `row`."""
        # The group that closed last is the outermost one of the style that matched.
        style = match.lastindex or 1
        fixed, fraction, zone, year = match.group(style + 1, style + 2, style + 3, style + 4)
        self.add_parts(row, _LAYOUTS[(style - 1) // _GROUPS], fixed, fraction, zone, year)

    def add_parts(
        self,
        row: int,
        layout: str,
        fixed: bytes,
        fraction: bytes | None = None,
        zone: bytes | None = None,
        year: bytes | None = None,
    ) -> None:
        """Add a time that the caller has split into parts; `fixed` is as wide as its layout."""
        self._found.setdefault(layout, []).append((row, fixed, fraction or b"", zone or b"", year or b""))

    def seconds(self, n: int, clock: float) -> NDArray[np.float64]:
        """float64 [n]: seconds since the epoch by row; nan if there is no time or an impossible one."""
        times = np.full(n, np.nan)
        for layout, found in self._found.items():
            rows, fixed, fractions, zones, years = zip(*found, strict=True)
            read = _seconds_of_epoch_digits(fixed) if layout == EPOCH else seconds_of_dates(layout, fixed, clock, years)
            times[list(rows)] = read + _seconds_fractions(fractions) - zone_offsets(zones)
        return times


def seconds_of_dates(
    layout: str, texts: Sequence[bytes], clock: float, years: Sequence[bytes] | None = None
) -> NDArray[np.float64]:
    """Seconds since the epoch of `texts`, each exactly as wide as `layout`; nan for impossible dates.

    `years` holds the four-digit year given outside the layout, b"" if none. A missing year or day is the one
    nearest to `clock`; the result is nan if `clock` is.
    """
    n = len(texts)
    grid = np.frombuffer(b"".join(texts), dtype=np.uint8).reshape(n, len(layout))
    hour, minute, second = (_digits_under_letter(grid, layout, letter) for letter in "hms")
    possible = (hour < 24) & (minute < 60) & (second <= 60)
    of_day = np.where(possible, hour * 3600.0 + minute * 60.0 + second, np.nan)
    if "D" not in layout:
        return _times_nearest_clock(
            [_clock_day_start(clock) + near for near in (0.0, -86400.0, 86400.0)], of_day, clock
        )
    day = _digits_under_letter(grid, layout, "D")
    month = _months_by_name(grid, layout.index("b")) if "b" in layout else _digits_under_letter(grid, layout, "M")
    if "Y" in layout:
        year = _digits_under_letter(grid, layout, "Y")
        if layout.count("Y") == 2:
            year = np.where(year < 70, year + 2000, year + 1900)
        return _days_since_epoch(year, month, day) * 86400.0 + of_day
    given = np.array([int(text) if text else 0 for text in years or [b""] * n], dtype=np.int64)
    this = _clock_year(clock)
    # Four years on either side only for 29 February, which most years do not have.
    reach = 4 if np.any((month == 2) & (day == 29)) else 1
    near = sorted(range(-reach, reach + 1), key=abs)
    starts = [_days_since_epoch(np.full(n, this + step), month, day) * 86400.0 for step in near] if this else []
    guessed = _times_nearest_clock(starts, of_day, clock)
    return np.where(given > 0, _days_since_epoch(given, month, day) * 86400.0 + of_day, guessed)


def zone_offsets(zones: Sequence[bytes]) -> NDArray[np.float64]:
    """Seconds east of UTC of each zone, as "Z", "+0200", " +02:00" or one of the names above; b"" is 0."""
    return np.fromiter(map(_zone_offset, zones), dtype=np.float64, count=len(zones))


def seconds_from_number(value: float) -> float:
    """Seconds since the epoch of a number in seconds, milli-, micro- or nanoseconds, inferred from its size.

    nan outside 2001 to 2099: such a number is not a time.
    """
    for unit in (1, 1_000, 1_000_000, 1_000_000_000):
        if 1e9 * unit <= value < 4.1e9 * unit:
            return value / unit
    return float("nan")


_DIGIT = np.zeros(256, dtype=np.int64)
_DIGIT[48:58] = np.arange(10)
_NAMES = np.zeros(32 * 32 * 32, dtype=np.int64)
for _at, _name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()):
    _NAMES[(_name[0] & 31) << 10 | (_name[1] & 31) << 5 | (_name[2] & 31)] = _at + 1


def _digits_under_letter(grid: NDArray[np.uint8], layout: str, letter: str) -> NDArray[np.int64]:
    number = np.zeros(len(grid), dtype=np.int64)
    for column, mark in enumerate(layout):
        if mark == letter:
            number = number * 10 + _DIGIT[grid[:, column]]
    return number


def _months_by_name(grid: NDArray[np.uint8], column: int) -> NDArray[np.int64]:
    letters = (grid[:, column : column + 3] & 31).astype(np.int64)
    named: NDArray[np.int64] = _NAMES[letters[:, 0] << 10 | letters[:, 1] << 5 | letters[:, 2]]
    return named


def _days_since_epoch(year: NDArray[np.int64], month: NDArray[np.int64], day: NDArray[np.int64]) -> NDArray[np.float64]:
    """Days since the epoch, nan if there is no such date."""
    months = (year - 1970) * 12 + month - 1
    days = _first_days_of_months(months) + day - 1
    following = _first_days_of_months(months + 1)
    real = (month >= 1) & (month <= 12) & (day >= 1) & (days < following)
    return np.where(real, days, np.nan)


def _first_days_of_months(months: NDArray[np.int64]) -> NDArray[np.int64]:
    return months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)


def _times_nearest_clock(
    starts: Sequence[NDArray[np.float64] | float], of_day: NDArray[np.float64], clock: float
) -> NDArray[np.float64]:
    """Of several starts plus a time within them, the time that is nearest to `clock`; nan: none is possible."""
    best = np.full(len(of_day), np.nan)
    for start in starts:
        times = start + of_day
        with_this = ~(np.abs(times - clock) >= np.abs(best - clock))  # true also where best is still nan
        best = np.where(with_this & ~np.isnan(times), times, best)
    return best


def _is_usable_clock(clock: float) -> bool:
    return 0.0 <= clock < 2.5e11  # a clock outside the years 1970 to 9892 is not usable


def _clock_year(clock: float) -> int:
    """The clock's year; 0 if it is not usable."""
    if not _is_usable_clock(clock):
        return 0
    return int(np.datetime64(int(clock), "s").astype("datetime64[Y]").astype(int)) + 1970


def _clock_day_start(clock: float) -> float:
    return clock // 86400.0 * 86400.0 if _is_usable_clock(clock) else float("nan")


def _seconds_of_epoch_digits(texts: Sequence[bytes]) -> NDArray[np.float64]:
    return np.array([int(text) / 10 ** (len(text) - 10) for text in texts])


def _seconds_fractions(texts: Sequence[bytes]) -> NDArray[np.float64]:
    return np.array([float(b"0." + text[1:]) if text else 0.0 for text in texts])


_ZONES = {
    b"": 0, b"Z": 0, b"UTC": 0, b"GMT": 0, b"WET": 0, b"WEST": 1, b"CET": 1, b"CEST": 2, b"EET": 2,
    b"EEST": 3, b"MSK": 3, b"EDT": -4, b"EST": -5, b"CDT": -5, b"CST": -6, b"MDT": -6, b"MST": -7,
    b"PDT": -7, b"PST": -8,
}  # fmt: skip


@lru_cache(maxsize=1024)
def _zone_offset(zone: bytes) -> float:
    zone = zone.strip()
    if zone in _ZONES:
        return _ZONES[zone] * 3600.0
    east = int(zone[1:3]) * 3600.0 + int(zone[-2:]) * 60.0
    return -east if zone[:1] == b"-" else east
