"""The room that the files of records take on their disk: one budget for all of them, and the journal comes first.

Files of records (`persistence.jsonl`) are rotated to parts:

    part := <name of the file> ".0" digit{7,}       alerts.jsonl.00000012

The numbers ascend. Their first digit is 0 whatever comes, which no date has that logrotate puts there. When all parts,
and a new one of each file, could be larger than `max_bytes`, the oldest part of any file is removed: that which was
written to last the longest ago.

Records give way before the disk is full: when less than is to be kept free is free, parts are removed in the same
order. One removal that frees nothing (something else holds the room) is the last one for PAUSE_SECONDS. The journal,
when it has no room at all, makes a part go with each try, whatever the disk says of itself, until one frees nothing.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persistence.disk import REAL, Disk

KEEP_FREE_BYTES = 256 << 20
PARTS = 8
PART_SUFFIX = r"\.0[0-9]{7,}"
PAUSE_SECONDS = 600.0
# Some file systems free the blocks of a removed file a little later.
FREED_TRIES = 10
FREED_TRY_SECONDS = 0.1

_REASONS = {
    "max_bytes": "max_bytes is reached",
    "disk": "the disk is almost full",
    "journal": "the journal has no room",
}

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
    `use`, `status` and `shortage` blocks and raises OSError; any thread may call. `space` gives the bytes free and the
    size of the disk, `now` seconds that never go back.
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
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.shortage: str | None = None  # why records give way now, as of the last look at the disk
        self._paths = [directory / name for name in names]
        self._disk, self._space, self._now, self._sleep = disk, space, now, sleep
        self._free = self._kept = 0  # as of the last look at the disk
        self._removed_for = dict.fromkeys(_REASONS, 0)
        # After a removal that freed nothing: until when none is removed for the disk, and none for the journal.
        self._paused_until = self._paused_for_journal_until = -1.0
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

    def status(self) -> dict[str, Any]:
        """`max_bytes`, None where others rotate; by reason, the parts removed since the start; and as of the last look
        at the disk, the bytes free and those kept for the journal."""
        return {
            "max_bytes": self.max_bytes or None,
            "parts_removed": dict(self._removed_for),
            "disk_free": self._free,
            "disk_kept_free": self._kept,
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
                if not self._remove_oldest_part("max_bytes"):
                    break

    def make_room(self, keep_free: int, size: int = 0) -> int | None:
        """Have `size` bytes and `keep_free` beside them free, or a twentieth of the disk if that is less: remove parts.

        None if there is now; otherwise how much was to be kept.
        """
        with self._lock:
            kept = self._look_at_disk(keep_free)
            while self._free < kept + size and self._now() >= self._paused_until:
                before = self._free
                if not self._remove_oldest_part("disk"):
                    break
                if not self._has_freed(before):
                    self._paused_until = self._now() + PAUSE_SECONDS
            # A file that leaves more free than the journal needs has its own reasons to wait.
            needed = min(kept, KEEP_FREE_BYTES)
            self.shortage = None
            if self._free < needed:
                self.shortage = (
                    f"{self._free >> 20:,} MB are free on the disk of {self.directory}, and {needed >> 20:,} MB are "
                    "kept for the journal: records give way; free some room"
                )
            return kept if self._free < kept + size else None

    def give_way_to_journal(self) -> bool:
        """Remove the oldest part, for the journal has no room. False if there is none to remove, or if the last one
        freed nothing."""
        with self._lock:
            self._look_at_disk(KEEP_FREE_BYTES)
            before = self._free
            if self._now() < self._paused_for_journal_until or not self._remove_oldest_part("journal"):
                return False
            if not self._has_freed(before):
                self._paused_for_journal_until = self._now() + PAUSE_SECONDS
            return True

    def _look_at_disk(self, keep_free: int) -> int:
        """How much of `keep_free` is to be kept of a disk of this size."""
        self._free, total = self._space(self.directory)
        self._kept = min(KEEP_FREE_BYTES, total // 20)
        return min(keep_free, total // 20)

    def _has_freed(self, before: int) -> bool:
        """Whether more is free now than `before`, after a part was removed; it is logged if not."""
        for tries_left in reversed(range(FREED_TRIES)):
            self._free, _ = self._space(self.directory)
            if self._free > before:
                return True
            if tries_left:
                self._sleep(FREED_TRY_SECONDS)
        log.warning(
            "removing records freed nothing on the disk of %s: the others stay for %d minutes",
            *(self.directory, PAUSE_SECONDS // 60),
        )
        return False

    def _growing(self) -> int:
        """The bytes that files may have which are not rotated yet."""
        return len(self._paths) * self.part_bytes

    def _remove_oldest_part(self, why: str) -> bool:
        """`why` is one of _REASONS. A part that somebody has still to read would go last here."""
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
        self._removed_for[why] += 1
        said = (part.name, path.name, found.st_size, _REASONS[why])
        log.warning("%s, the oldest part of %s, is removed (%d bytes): %s", *said)
        return True


def _part_number(part: Path) -> int:
    return int(part.name.rpartition(".")[2])
