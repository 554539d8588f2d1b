"""The commands that the documents tell a user to run, read out of the documents themselves."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# What a user types begins with one of these. In a block every line is a command or is listed as what it is instead.
PROGRAMS = frozenset(
    "./install.sh apt apt-get curl docker install journalctl logrotate make nc pip podman python3 sudo systemctl "
    "systemd-analyze tail usermod vigilctl zcat".split()
)
_FENCE = re.compile(r" {0,3}```")
_SPAN = re.compile(r"`([^`\n]+)`")
_SECTION = re.compile(r"\[\w+\]$")
_COMMENT = re.compile(r"(^|\s{2,})#\s.*$")


@dataclass(frozen=True)
class Command:
    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def commands(page: str, text: str) -> Iterator[Command]:
    """Every line of every block of `text`, without its comment, and every span of it that begins with a program.

    A line that ends in a backslash goes on in the next one, and one that is indented within its block belongs to the
    line before it. A block that begins with [section] is settings, and one command: to have them.
    """
    block: list[tuple[int, str]] = []
    fenced = blank = False
    blank = True
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        elif fenced:
            block.append((number, line))
        elif line.startswith("    ") and (blank or block):
            block.append((number, line[4:]))
        elif line.strip():
            yield from _of_block(page, block)
            block = []
            for span in _SPAN.findall(line):
                words = span.split()
                if len(words) > 1 and words[0] in PROGRAMS:
                    yield Command(page, number, span)
        blank = not line.strip()
    yield from _of_block(page, block)


def _of_block(page: str, block: list[tuple[int, str]]) -> Iterator[Command]:
    if block and _SECTION.match(block[0][1]):
        yield Command(page, block[0][0], "\n".join(line for _, line in block).strip())
        return
    joined: list[tuple[int, str]] = []
    for number, line in block:
        stripped = _COMMENT.sub("", line).rstrip()
        if not stripped:
            continue
        if joined and (stripped.startswith(" ") or joined[-1][1].endswith("\\")):
            before, text = joined.pop()
            joined.append((before, f"{text.removesuffix(chr(92)).rstrip()} {stripped.strip()}"))
        else:
            joined.append((number, stripped))
    for number, text in joined:
        yield Command(page, number, text)
