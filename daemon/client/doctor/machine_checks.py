"""Checks of the machine: disk, descriptors, memory, kernel, clock."""

import ctypes
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from actors.journaled_mark import peek_marks_work
from daemon.client.doctor.finding import Finding, fail_finding, ok_finding, unchecked_finding, warn_finding
from daemon.client.doctor.target_daemon import Target
from daemon.client.doctor.unit_checks import MOST_CONNECTIONS
from daemon.client.text.formatting import duration_text, printable, size_text

# A snapshot and a model take some tens of megabytes each, and are complete before old ones are removed.
LITTLE_BYTES, SCARCE_BYTES = 64 << 20, 512 << 20
FEW_INODES = 200
# Measured: 605 MiB after 500,000 lines and several models, and the trainer beside it.
DAEMON_BYTES, WITH_TRAINER_BYTES = 640 << 20, 1280 << 20
OWN_DESCRIPTORS = 64  # beside one for each connection
CLOCK_SECONDS = 5.0
AHEAD_SECONDS = 3600.0
_STA_UNSYNC = 0x0040  # adjtimex(2)


def check_disk(target: Target) -> Iterator[Finding]:
    place = next(path for path in (target.state, *target.state.parents) if path.exists())
    found = os.statvfs(place)
    # f_bavail: the blocks reserved for root are not for the daemon, unless it runs as root.
    blocks = found.f_bfree if target.user is not None and target.user.uid == 0 else found.f_bavail
    free = blocks * found.f_frsize
    held = _state_directory_bytes(target.state)
    text = f"{size_text(free)} free at {place}" + (
        f", {size_text(held)} in it" if held is not None and held > 0 else ""
    )
    do = f"make room, or a disk of its own at {target.state}; du -sh {target.state}"
    if free < LITTLE_BYTES:
        yield fail_finding("disk", f"{text}: lines cannot be journaled for long, and then senders wait", do)
    elif found.f_files and found.f_favail < FEW_INODES:
        yield fail_finding("disk", f"{text}, but only {found.f_favail:,} more files (inodes)", f"df -i {place}")
    elif free < SCARCE_BYTES:
        yield warn_finding("disk", f"{text}: room for little more", do)
    else:
        yield ok_finding("disk", text)
    if held is None:
        yield unchecked_finding("state files", f"{target.state}: permission denied")
        return
    if bad := sorted(_files_set_aside(target.state)):
        names = ", ".join(printable(path.name) for path in bad[:5]) + (f" and {len(bad) - 5} more" * (len(bad) > 5))
        yield warn_finding(
            "state files",
            f"damaged or not applied, set aside: {names}",
            f"the log of that start says why; when it is not needed any more: rm {target.state}/*.bad",
        )
    else:
        yield ok_finding("state files", "nothing was set aside (*.bad)")


def _state_directory_bytes(state: Path) -> int | None:
    """The bytes in the state directory; None without permission to look."""
    try:
        return sum(entry.lstat().st_size for entry in state.iterdir())
    except FileNotFoundError:
        return 0
    except PermissionError:
        return None


def _files_set_aside(state: Path) -> list[Path]:
    return [path for path in state.iterdir() if ".bad" in path.suffixes] if state.is_dir() else []


def check_descriptors(target: Target) -> Iterator[Finding]:
    if target.pid is None:
        return
    try:
        limits = Path(f"/proc/{target.pid}/limits").read_text()
    except FileNotFoundError:
        if target.unreachable is None:  # else it has just ended, which another check reports
            found = f"not checked: process {target.pid} cannot be seen from here"
            yield warn_finding("descriptors", found, "ask on the host, or in the container, in which the daemon runs")
        return
    soft, hard = open_file_limits(limits)
    needed = MOST_CONNECTIONS + OWN_DESCRIPTORS
    text = f"{soft:,} (hard limit {hard:,})"
    if soft >= needed:
        yield ok_finding("descriptors", text)
    elif target.service is not None:
        do = (
            f"systemctl edit {target.service.name}, [Service] LimitNOFILE=4096; systemctl restart {target.service.name}"
        )
        yield warn_finding("descriptors", f"{text}: too few for {MOST_CONNECTIONS:,} connections", do)
    elif soft < 256:
        yield warn_finding("descriptors", f"{text}: few connections", "ulimit -n 4096, then start the daemon again")
    else:
        yield ok_finding("descriptors", f"{text}: about {soft - OWN_DESCRIPTORS:,} connections at a time")


def open_file_limits(limits: str) -> tuple[int, int]:
    """The soft and the hard limit on open files in the text of /proc/PID/limits."""
    found = re.search(r"^Max open files\s+(\S+)\s+(\S+)", limits, re.MULTILINE)
    soft, hard = (int(word) if word.isdecimal() else 1 << 20 for word in (found.groups() if found else ("0", "0")))
    return soft, hard


def check_memory(target: Target) -> Iterator[Finding]:
    total = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    limit = _cgroup_limit(target.pid)
    room, whose = (
        (limit, "its control group allows") if limit is not None and limit < total else (total, "the machine has")
    )
    cores = len(os.sched_getaffinity(0))
    text = f"{whose} {size_text(room)}, {cores} {'core' if cores == 1 else 'cores'}"
    do = "raise MemoryMax=" if room != total else "give the machine more memory"
    if room < DAEMON_BYTES:
        yield fail_finding("memory", f"{text}: the daemon needs {size_text(DAEMON_BYTES)} once a model is there", do)
    elif room < WITH_TRAINER_BYTES:
        yield warn_finding(
            "memory", f"{text}: a training may be killed for memory; {size_text(WITH_TRAINER_BYTES)} is enough", do
        )
    else:
        yield ok_finding("memory", text)


def _cgroup_limit(pid: int | None, root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The lowest memory limit in bytes of the daemon's control group (else ours) and its parents; None without one."""
    try:
        lines = Path(f"/proc/{pid or 'self'}/cgroup").read_text().splitlines()
    except FileNotFoundError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, name = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        place = base / path.lstrip("/")
        for folder in (place, *place.parents):
            try:
                text = (folder / name).read_text().strip()
            except OSError:  # not mounted here, or the root group, which has no limit
                text = "max"
            if text.isdecimal():
                limits.append(int(text))
            if folder == base:
                break
    return min(limits, default=None)


def check_kernel(target: Target) -> Iterator[Finding]:
    release = os.uname().release
    if peek_marks_work():
        yield ok_finding("kernel", f"{release}: keeps a mark beside a socket's bytes (SO_PEEK_OFF)")
    else:
        yield warn_finding(
            "kernel",
            f"{release}: keeps no mark beside a socket's bytes (SO_PEEK_OFF), so after a kill a sender is reset",
            "Linux 3.4 or newer has it; some sandboxes do not: run vigild outside of one for exactly-once",
        )


def check_clock(target: Target) -> Iterator[Finding]:
    now = time.time()
    text = datetime.fromtimestamp(now, UTC).isoformat(" ", "seconds")
    set_it = "timedatectl set-ntp true, or set it by hand: date --set"
    theirs = target.status.get("time")
    log_time = target.status.get("log_time")
    container = container_shares_host_clock()
    if not 2024 <= datetime.fromtimestamp(now, UTC).year < 2100:
        yield fail_finding("clock", f"{text}: cannot be", set_it)
    elif isinstance(theirs, (int, float)) and abs(now - theirs) > CLOCK_SECONDS:
        yield warn_finding("clock", f"{text}, and the daemon's is {now - theirs:+.0f} s off", set_it)
    elif not clock_is_synchronised() and not container:
        yield warn_finding("clock", f"{text}, not synchronised: times of alerts drift", set_it)
    else:
        yield ok_finding(
            "clock", text + ("" if clock_is_synchronised() else " (not synchronised by NTP here; the host's matter)")
        )
    if isinstance(log_time, (int, float)) and log_time > 0:
        behind = now - log_time
        if behind < -AHEAD_SECONDS:
            yield warn_finding(
                "log clock",
                f"the log's newest times are {duration_text(-behind)} ahead of this machine's clock",
                "compare the senders' clocks and time zones with this machine's",
            )
        else:
            yield ok_finding("log clock", f"{duration_text(max(behind, 0.0))} behind this machine's")


def clock_is_synchronised() -> bool:
    """Whether the kernel considers its clock synchronised (by NTP or the like)."""
    # struct timex: unsigned int modes; long offset, freq, maxerror, esterror; int status; ... Modes 0 only reads.
    buffer = ctypes.create_string_buffer(512)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(buffer) < 0:
        return False
    longs = ctypes.sizeof(ctypes.c_long)
    status = ctypes.c_int.from_buffer(buffer, 5 * longs).value
    return not status & _STA_UNSYNC


def container_shares_host_clock() -> bool:
    """Whether we run in a container: its clock is the host's."""
    marks = ("/run/systemd/container", "/.dockerenv", "/run/.containerenv")
    return any(Path(mark).exists() for mark in marks) or "container" in os.environ
