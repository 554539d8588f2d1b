"""Text lines with a time at or near the head, and plain lines, which may have one at the head.

    [Sun Dec 04 04:47:44 2005] [error] mod_jk child workerEnv in error state 6
    081109 203615 148 INFO dfs.DataNode$PacketResponder: PacketResponder 1 for block blk_38 terminating
    (N) 2024-11-26T01:26:58 - WebAPI login success. IP: 192.0.2.7

The time is cut out together with the brackets and separators around it, as are process and thread numbers; level
and component stay. Colour codes are removed.
"""

import re
from collections.abc import Sequence

from detection.formats import levels, times
from detection.formats.fields import Fields

_ANSI = re.compile(rb"\x1b\[[0-9;?]{0,16}[A-Za-z]")
# After the time: the rest of its bracket, separators, then process or thread numbers: in brackets, or bare in front
# of a level. "3 users logged in" keeps its 3.
_AFTER = re.compile(
    rb"[\])\"]?[\s:,|;]*+(?>(?:-++\s++)?)(?>(?:\[\d{1,10}\]:?\s*+)?)"
    rb"(?>(?:(?>(?:\d{1,10}\s++){1,3})(?=" + levels.WORD_AHEAD + rb"|[VDIWEFA]\s))?)"
)
_BEFORE = b' \t[("#,:|-'
# BlueGene: alert label, epoch, date, node, time, node. The label was added by hand and is not part of the event.
_BLUEGENE = re.compile(rb"(?:-|[A-Z]\S{2,15}) (\d{10}) \d{4}\.\d\d\.\d\d \S{1,64} \d{4}-\S{10,40} \S{1,64} ")
# The audit system of Linux: type=SYSCALL msg=audit(1684329817.579:2995): arch=...
_AUDIT = re.compile(rb"(type=\S{1,40}) msg=audit\((\d{10})(\.\d{1,9})?:\d{1,19}\):")
_APACHE_PID = re.compile(rb"\[pid \d+(?::tid \d+)?\] ?")
_NGINX_PID = re.compile(rb"(\[\w{1,10}\] )\d+#\d+: (?:\*\d+ )?")
_GLOG_THREAD = re.compile(rb"([IWEF]) +\d+ ")


def parse_timestamped(
    lines: Sequence[bytes], clock: float, *, inside: bool = True, kind: str = "timestamped"
) -> Fields:
    """Parse every line as text with a time; see `kinds.parse_as_kind`. Without `inside` only one at the head counts."""
    n = len(lines)
    stamps = times.Stamps()
    contents = [b""] * n
    for row, line in enumerate(lines):
        contents[row] = _text_without_time(row, line, stamps, inside)
    times_read, errors = stamps.seconds(n, clock), levels.have_error_level(contents)
    return Fields(kind, "text", times_read, [b""] * n, contents, list(contents), [b""] * n, errors)


def fits_timestamped(line: bytes) -> bool:
    """True if `line` has a time at or near its head."""
    return (times.find_time(line, inside=True) or _BLUEGENE.match(line) or _AUDIT.match(line)) is not None


def _text_without_time(row: int, line: bytes, stamps: times.Stamps, inside: bool) -> bytes:
    """`line` without its time and process numbers; the time is added to `stamps`."""
    if b"\x1b" in line:
        line = _ANSI.sub(b"", line)
    found = times.find_time(line)
    if found is None:
        if labelled := _BLUEGENE.match(line):
            stamps.add_parts(row, times.EPOCH, labelled[1])
            return line[labelled.end() :]
        if audit := _AUDIT.match(line):
            stamps.add_parts(row, times.EPOCH, audit[2], audit[3])
            return audit[1] + line[audit.end() :]
        found = times.find_time(line, inside=True) if inside else None
        if found is None:
            return line
    start, end = times.time_span(found)
    after = _AFTER.match(line, end)
    rest = line[after.end() if after else end :]
    stamps.add(row, found)
    head = rest[:80]
    if b"[pid " in head:
        rest = _APACHE_PID.sub(b"", rest, count=1)
    elif b"#" in head and (process := _NGINX_PID.match(rest)):
        rest = process[1] + rest[process.end() :]
    if start and (before := line[:start].rstrip(_BEFORE)):
        rest = before + b" " + rest
        if before in (b"I", b"W", b"E", b"F"):
            rest = _GLOG_THREAD.sub(rb"\1 ", rest, count=1)
    return rest
