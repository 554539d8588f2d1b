"""The room that the files of records take on their disk: one budget for all of them, and the journal comes first.

Files of records (`persistence.jsonl`) are rotated to parts:

    part := <name of the file> ".0" digit{7,}       alerts.jsonl.00000012

The numbers ascend. Their first digit is 0 whatever comes, which no date has that logrotate puts there. When all parts,
and a new one of each file, could be larger than `max_bytes`, the oldest part of any file is removed: that which was
written to last the longest ago.

Records give way before the disk is full: when less than is to be kept free is free, parts are removed in the same
order. One removal that frees nothing (something else holds the room) is the last one for PAUSE_SECONDS. The journal,
when it has no room at all, makes a part go with each try, whatever the disk says of itself.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from persistence.disk import REAL, Disk

KEEP_FREE_BYTES = 256 << 20
PARTS = 8
PART_SUFFIX = r"\.0[0-9]{7,}"
PAUSE_SECONDS = 600.0

log = logging.getLogger(__name__)


def rotated_parts(path: Path) -> list[Path]:
    """The parts to which the file of records at `path` was rotated, oldest first."""
    name = re.compile(re.escape(path.name) + PART_SUFFIX)
    return sorted((each for each in path.parent.iterdir() if name.fullmatch(each.name)), key=_part_number)


def free_space(directory: Path) -> tuple[int, int]:
    """Bytes free on the disk of `directory` for us, and its size. Raises OSError."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


@dataclass(slots=True)
class _Use:
    """Of one file: the bytes in its parts, and what was removed since the start."""

    bytes_in_parts: int = 0
    removed: int = 0
    removed_bytes: int = 0


class RecordSpace:
    """Over the files `names` in `directory`, which are this object's alone to rotate and remove parts of.

    `max_bytes` is of all of them together, 0: others rotate them, and nothing is removed. Every call but `part_bytes`,
    `use` and `shortage` blocks and raises OSError; any thread may call. `space` gives the bytes free and the size of
    the disk, `now` seconds that never go back.
    """

    def __init__(
        self,
        directory: Path,
        names: Sequence[str],
        *,
        max_bytes: int = 0,
        disk: Disk = REAL,
        space: Callable[[Path], tuple[int, int]] = free_space,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.shortage: str | None = None  # why records give way now, as of the last look at the disk
        self._paths = [directory / name for name in names]
        self._disk, self._space, self._now = disk, space, now
        self._paused_until = -1.0
        self._lock = threading.Lock()
        self._uses = {path: _Use(sum(part.stat().st_size for part in rotated_parts(path))) for path in self._paths}

    @property
    def part_bytes(self) -> int:
        """How large a file may grow before it is rotated; 0 if it is not."""
        return self.max_bytes // PARTS

    def use(self, path: Path) -> dict[str, int]:
        """Of the file at `path`: the bytes in its parts, and how many parts and bytes were removed since the start."""
        use = self._uses[path]
        return {
            "bytes_in_parts": use.bytes_in_parts,
            "parts_removed": use.removed,
            "bytes_removed": use.removed_bytes,
        }

    def rotate(self, path: Path) -> None:
        """Make the file at `path` its newest part, durably, and remove the oldest ones beyond `max_bytes`."""
        with self._lock:
            parts = rotated_parts(path)
            part = path.with_name(f"{path.name}.0{_part_number(parts[-1]) + 1 if parts else 1:07d}")
            self._disk.rename(path, part)
            self._disk.sync(self.directory)
            self._uses[path].bytes_in_parts += part.stat().st_size
            while sum(use.bytes_in_parts for use in self._uses.values()) > self.max_bytes - self._growing():
                if not self._remove_oldest_part("max_bytes is reached"):
                    break

    def make_room(self, keep_free: int, size: int = 0) -> int | None:
        """Have `size` bytes and `keep_free` beside them free, or a twentieth of the disk if that is less: remove parts.

        None if there is now; otherwise how much was to be kept.
        """
        with self._lock:
            free, total = self._space(self.directory)
            kept = min(keep_free, total // 20)
            while free < kept + size:
                if self._now() < self._paused_until or not self._remove_oldest_part("the disk is almost full"):
                    break
                before, (free, _) = free, self._space(self.directory)
                if free <= before:
                    self._paused_until = self._now() + PAUSE_SECONDS
                    log.warning(
                        "removing records freed nothing on the disk of %s: the others stay for %d minutes",
                        *(self.directory, PAUSE_SECONDS // 60),
                    )
            if free < kept + size:
                self.shortage = (
                    f"{free >> 20:,} MB are free on the disk of {self.directory}, and {kept >> 20:,} MB are kept for "
                    "the journal: records give way; free some room"
                )
                return kept
            self.shortage = None
            return None

    def give_way_to_journal(self) -> bool:
        """Remove the oldest part, for the journal has no room. False if there is none to remove."""
        with self._lock:
            return self._remove_oldest_part("the journal has no room")

    def _growing(self) -> int:
        """The bytes that files may have which are not rotated yet."""
        return len(self._paths) * self.part_bytes

    def _remove_oldest_part(self, why: str) -> bool:
        if not self.max_bytes:
            return False
        oldest = [(parts[0].stat(), parts[0], path) for path in self._paths if (parts := rotated_parts(path))]
        if not oldest:
            return False
        found, part, path = min(oldest, key=lambda each: each[0].st_mtime_ns)
        self._disk.unlink(part)
        use = self._uses[path]
        use.bytes_in_parts -= found.st_size
        use.removed += 1
        use.removed_bytes += found.st_size
        log.warning("%s, the oldest part of %s, is removed (%d bytes): %s", part.name, path.name, found.st_size, why)
        return True


def _part_number(part: Path) -> int:
    return int(part.name.rpartition(".")[2])
