"""How far a file of records has come, kept beside it: what is left when the file is rotated away.

    mark  := first entry*                        each a line of ASCII
    first := durable " " boot " " crc "\\n"       replaced as a whole when the records have been synced
    entry := written " " crc "\\n"                appended after each write of records, not synced

`durable` and `written` are the id of the last record, "-" for none; `boot` the kernel's boot id; crc the CRC-32 in
hex of what stands before it on the line. While the machine stays up nothing that was written is lost, however
the process died, so the last entry counts; after another boot only `durable` does. A line that is not whole ends
the mark. A damaged or missing mark says nothing, and the file of records is believed alone.
"""

import os
import re
import zlib
from pathlib import Path

from persistence.disk import REAL, Disk, File, read_with_patience, replace_file

_LINE = re.compile(rb"([^ \n]+(?: [^ \n]+)?) ([0-9a-f]{8})\n")
_NONE = "-"


def boot_id() -> str:
    """The kernel's name for the time since it was started; never the same twice where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except FileNotFoundError:
        return os.urandom(16).hex()


class Mark:
    """The mark at `path`. Every method but `written` may raise OSError. Not for use by two threads at once.

    `last` is the id that counts, None when nothing is known; `unsynced` says that it was written and perhaps not
    made durable by the process before. `boot` is what `boot_id` gives.
    """

    def __init__(self, path: Path, disk: Disk = REAL, boot: str | None = None) -> None:
        self.last: str | None = None
        self.unsynced = False
        self._path = path
        self._disk = disk
        self._boot = boot or boot_id()
        self._durable: str | None = None
        self._file: File | None = None
        self._read()

    def written(self, last: str) -> None:
        """Records through `last` were written. A mark that cannot be written is made good by the next `synced`."""
        self.last = last
        try:
            if self._file is None:
                self._replace(self._durable)
                self._file = self._disk.append(self._path)
            self._file.write(_line(last))
        except OSError:
            # The records themselves are there: this only matters if they are rotated away and we are killed
            # before the next sync, and whoever writes on a failing disk hears of it from the records.
            self.close()

    def synced(self) -> None:
        """Everything through `last` is durable."""
        if self.last is None or (self.last == self._durable and self._file is None and not self.unsynced):
            return
        self.close()
        self._replace(self.last)
        self.unsynced = False

    def fall_back(self) -> None:
        """What was written since the last `synced` is about to be written again, and until then may be nowhere."""
        if self.last == self._durable:
            return
        self.close()
        self._replace(self._durable)
        self.last = self._durable

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _replace(self, durable: str | None) -> None:
        replace_file(self._disk, self._path, [_line(f"{durable or _NONE} {self._boot}")])
        self._durable = durable

    def _read(self) -> None:
        def read() -> bytes:
            with self._disk.read(self._path) as file:
                return file.read()

        try:
            data = read_with_patience(self._path, read)
        except FileNotFoundError:
            return
        first, *entries = _whole_lines(data) or [""]
        durable, _, boot = first.partition(" ")
        if not boot:
            return
        self._durable = None if durable == _NONE else durable
        self.last = self._durable
        if boot == self._boot and entries:
            self.last, self.unsynced = entries[-1], True


def _line(text: str) -> bytes:
    return b"%s %08x\n" % (text.encode("ascii"), zlib.crc32(text.encode("ascii")))


def _whole_lines(data: bytes) -> list[str]:
    lines = []
    at = 0
    while (match := _LINE.match(data, at)) is not None and int(match[2], 16) == zlib.crc32(match[1]):
        lines.append(match[1].decode("ascii", "replace"))
        at = match.end()
    return lines
