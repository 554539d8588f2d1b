"""The high-water mark of a file of records, in a file beside it: the id of the last record, which outlives rotation.

    mark  := first entry*                        each a line of ASCII
    first := durable " " boot " " crc "\\n"       replaced as a whole when the records have been synced
    entry := written " " crc "\\n"                appended after each write of records, not synced

`durable` and `written` are the id of the last record, "-" for none; `boot` the kernel's boot id; crc the CRC-32 in
hex of the text before it on the line. While the machine stays up, nothing that was written is lost however the
process died, so the last entry counts; after a reboot only `durable` counts. An incomplete line ends the mark. With
a damaged or missing mark the file of records alone decides.
"""

import os
import re
import zlib
from pathlib import Path

from persistence.disk import REAL, Disk, File, read_with_patience, replace_file

_LINE = re.compile(rb"([^ \n]+(?: [^ \n]+)?) ([0-9a-f]{8})\n")
_NONE = "-"


def boot_id() -> str:
    """The kernel's id of this boot; a new random id at each call where the kernel has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except FileNotFoundError:
        return os.urandom(16).hex()


class HighWaterMark:
    """The mark at `path`. Every method but `note_written` may raise OSError. Not for use by two threads at once.

    `last` is the id of the last record, None when nothing is known. `unsynced`: the previous process wrote that record
    and perhaps did not make it durable. `boot` is the boot id, None for this one's.
    """

    def __init__(self, path: Path, disk: Disk = REAL, boot: str | None = None) -> None:
        self.last: str | None = None
        self.unsynced = False
        self._path = path
        self._disk = disk
        self._boot = boot or boot_id()
        self._durable: str | None = None
        self._file: File | None = None
        self._read_high_water_file()

    def note_written(self, last: str) -> None:
        """Records through `last` were written. If the mark cannot be, the next `note_synced` makes up for it."""
        self.last = last
        try:
            if self._file is None:
                self._replace_high_water_file(self._durable)
                self._file = self._disk.append(self._path)
            self._file.write(_high_water_line(last))
        except OSError:
            # The records themselves are there. This matters only if they are rotated away and we are killed
            # before the next sync; and a failing disk is reported by the writes of records.
            self.close()

    def note_synced(self) -> None:
        """Everything through `last` is durable."""
        if self.last is None or (self.last == self._durable and self._file is None and not self.unsynced):
            return
        self.close()
        self._replace_high_water_file(self.last)
        self.unsynced = False

    def fall_back_to_durable(self) -> None:
        """Records since the last `note_synced` are about to be written again, and may be nowhere until then."""
        if self.last == self._durable:
            return
        self.close()
        self._replace_high_water_file(self._durable)
        self.last = self._durable

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _replace_high_water_file(self, durable: str | None) -> None:
        replace_file(self._disk, self._path, [_high_water_line(f"{durable or _NONE} {self._boot}")])
        self._durable = durable

    def _read_high_water_file(self) -> None:
        def read_high_water_bytes() -> bytes:
            with self._disk.read(self._path) as file:
                return file.read()

        try:
            data = read_with_patience(self._path, read_high_water_bytes)
        except FileNotFoundError:
            return
        first, *entries = _whole_high_water_lines(data) or [""]
        durable, _, boot = first.partition(" ")
        if not boot:
            return
        self._durable = None if durable == _NONE else durable
        self.last = self._durable
        if boot == self._boot and entries:
            self.last, self.unsynced = entries[-1], True


def _high_water_line(text: str) -> bytes:
    return b"%s %08x\n" % (text.encode("ascii"), zlib.crc32(text.encode("ascii")))


def _whole_high_water_lines(data: bytes) -> list[str]:
    lines = []
    at = 0
    while (match := _LINE.match(data, at)) is not None and int(match[2], 16) == zlib.crc32(match[1]):
        lines.append(match[1].decode("ascii", "replace"))
        at = match.end()
    return lines
