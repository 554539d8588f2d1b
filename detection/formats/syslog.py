"""Syslog: RFC 3164 with and without priority, with the ISO times rsyslog writes, and RFC 5424.

    <34>Oct 11 22:14:15 mymachine su[230]: 'su root' failed
    2023-08-17T16:55:35.689651+02:00 mono endlessh[34256]: ACCEPT host=::ffff:192.0.2.1
    <165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% Time to make the do-nuts.

Contents are `program: message`, without pid, message id, structured data and the kernel's uptime.
The session key is `host program`. A message that is an access line is parsed as one: it gives contents, target,
agent, the client as key, and the time, which has a year.
"""

import re
from collections.abc import Sequence

from detection.formats import access, levels, times
from detection.formats.fields import Fields

_STAMP = (
    rb"(?:(" + times.BSD_PATTERN + rb"|" + times.BSD_SHORT_PATTERN + rb")|"
    rb"(\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d)"
    rb"(" + times.FRACTION_PATTERN + rb")?(" + times.ZONE_PATTERN + rb")?)"
)
# There is no host if the first token ends in a colon, and no program if no colon follows it.
_RFC3164 = re.compile(
    rb"(?:<(\d{1,3})>)?" + _STAMP + rb" (?!" + levels.WORD_AHEAD + rb")"
    rb"(?>(?:([^\s\[\"({=]*[^\s\[\"({=:]) ++)?)"
    rb"(?>(?:([^\s\[:]{1,64})(?: \d[\d.]{0,15})?(?:\[[^\]\s]{0,32}\])?:(?:\s++|$))?)"
    rb"(?:\[ *\d+\.\d+\] ?)?"
)
_RFC5424 = re.compile(
    rb"<(\d{1,3})>\d{1,2} (?:-|(\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\d)"
    rb"(\.\d{1,9})?(" + times.ZONE_PATTERN + rb")) (\S++) (\S++) \S++ \S++ "
    rb"(?:-|(?>(?:\[[^\]\"]*+(?>(?:\"[^\"\\]*+(?>(?:\\.[^\"\\]*+)*)\"[^\]\"]*+)*)\])+))(?: (?:\xef\xbb\xbf)?|$)",
    re.DOTALL,
)
_SEVERITY_ERROR = 3


def fits_syslog(line: bytes) -> bool:
    """True if `line` is a syslog line. One with an ISO time but no program might be anything, and is not."""
    if line[:1] == b"<" and _RFC5424.match(line):
        return True
    found = _RFC3164.match(line)
    if found is None:
        return False
    return found[6] is not None and (found[2] is not None or found[7] is not None)


def parse_syslog(lines: Sequence[bytes], clock: float) -> Fields:
    """Parse every line as syslog; see `kinds.parse_as_kind`."""
    n = len(lines)
    stamps = times.Stamps()
    keys, contents, targets = [b""] * n, list(lines), list(lines)
    severities: dict[int, int] = {}
    requests: list[int] = []
    for row, line in enumerate(lines):
        found = _RFC5424.match(line) if line[:1] == b"<" else None
        if found:
            priority, iso, fraction, zone, host, program = found.groups()
            bsd = None
            host, program = (b"" if name == b"-" else name for name in (host, program))
        else:
            found = _RFC3164.match(line)
            if found is None:
                continue
            priority, bsd, iso, fraction, zone, host, program = found.groups()
        if bsd:
            layout = times.BSD if len(bsd) == len(times.BSD) else times.BSD_SHORT
            stamps.add_parts(row, layout, bsd)
        elif iso:
            stamps.add_parts(row, times.ISO, iso, fraction, zone)
        message = line[found.end() :]
        targets[row] = message
        contents[row] = program + b": " + message if program else message
        keys[row] = b" ".join(filter(None, (host, program)))
        if b'] "' in message and access.match_access_line(message):
            requests.append(row)
        if priority:
            severities[row] = int(priority) & 7
    errors = levels.have_error_level(targets)
    for row, severity in severities.items():
        errors[row] = severity <= _SEVERITY_ERROR
    seconds, agents = stamps.seconds(n, clock), [b""] * n
    if requests:
        read = access.parse_access([targets[row] for row in requests], clock)
        seconds[requests], errors[requests] = read.times, read.errors
        for at, row in enumerate(requests):
            keys[row], contents[row] = read.keys[at], read.contents[at]
            targets[row], agents[row] = read.targets[at], read.agents[at]
    return Fields("syslog", "text", seconds, keys, contents, targets, agents, errors)
