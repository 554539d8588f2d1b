"""Checks of groups, directories, sockets and the lock: may the service's user and the senders use them."""

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from daemon.client.doctor.finding import Finding, fail_finding, ok_finding, unchecked_finding, warn_finding
from daemon.client.doctor.target_daemon import Target, status_part
from daemon.file_access import User, why_unusable

SENDERS = "vigild-log"  # systemd/vigild.sysusers
_SHOWN = 12


def check_groups(target: Target) -> Iterator[Finding]:
    """Who may send lines, and who may command. A plain daemon has no groups of its own."""
    if target.service is None:
        return
    make = "install vigild again, or, with its vigild.conf in /usr/lib/sysusers.d: systemd-sysusers"
    if target.user is None:
        yield fail_finding("users", f"there is no user {target.service['User']}: the service cannot start", make)
    commanders = target.service["Group"] or (target.user.name if target.user else "vigild")
    senders = (target.log_socket["SocketGroup"] if target.log_socket else "") or SENDERS
    for group, what in ((senders, "send lines"), (commanders, "query and command")):
        try:
            members = _group_member_names(group, target.user)
        except KeyError:
            yield fail_finding("users", f"there is no group {group}, whose members may {what}", make)
            continue
        names = ", ".join(members[:_SHOWN]) + (", ..." if len(members) > _SHOWN else "")
        text = f"root and {names} may {what} (group {group})"
        alone = f"only root may {what}; to add somebody: usermod --append --groups {group} USER"
        yield ok_finding("users", text if members else alone)


def _group_member_names(group: str, service: User | None) -> list[str]:
    entry = grp.getgrnam(group)
    primary = [each.pw_name for each in pwd.getpwall() if each.pw_gid == entry.gr_gid]
    names = dict.fromkeys([*entry.gr_mem, *primary])
    return [name for name in names if service is None or name != service.name]


def check_directories(target: Target) -> Iterator[Finding]:
    yield from _check_directory(target, "state directory", target.state, private=True)
    yield from _check_directory(target, "runtime directory", target.runtime, private=False)


def _check_directory(target: Target, name: str, path: Path, private: bool) -> Iterator[Finding]:
    user = target.user
    try:
        found = path.lstat()
    except FileNotFoundError:
        if target.unreachable is None:
            yield fail_finding(name, f"{path} is gone, while the daemon runs", _restart_advice(target))
        else:
            yield ok_finding(name, f"{path}: not there yet; the first start makes it")
        return
    owner, mode = _user_name(found.st_uid), stat.S_IMODE(found.st_mode)
    facts = f"{path}: {owner}, mode {mode:04o}"
    if not stat.S_ISDIR(found.st_mode) and not (path.is_dir() and found.st_uid == 0):
        yield fail_finding(name, f"{path}: is no directory", "move it out of the way")
    elif user is not None and path.stat().st_uid != user.uid and (private or target.service is not None):
        yield fail_finding(
            name, f"{facts}; the daemon runs as {user.name}", f"chown {'-R ' if private else ''}{user.name}: {path}"
        )
    elif private and mode & 0o077:
        yield fail_finding(name, f"{facts}: others can read what it remembers", f"chmod 700 {path}")
    elif not private and mode & 0o022:
        yield fail_finding(name, f"{facts}: others may replace its sockets", f"chmod go-w {path}")
    elif not private and target.service is not None and mode & 0o011 != 0o011:
        yield fail_finding(name, f"{facts}: members of {SENDERS} cannot pass", f"chmod 755 {path}")
    elif target.root and user is not None and (no := why_unusable(user, path, os.R_OK | os.W_OK | os.X_OK)):
        yield fail_finding(
            name, f"{facts}: {user.name} cannot use it ({no})", f"namei -l {path} shows which directory forbids it"
        )
    else:
        yield ok_finding(name, facts)


def check_sockets(target: Target) -> Iterator[Finding]:
    yield from _check_log_socket(target)
    yield from _check_admin_socket(target)


def _check_log_socket(target: Target) -> Iterator[Finding]:
    path, unit = log_socket_path(target), target.log_socket
    if path is None:
        return
    facts = _socket_facts(path)
    if facts is None:
        if unit is not None and unit.running:
            again = f"systemctl restart {unit.name}"
            yield fail_finding("log.sock", f"{path}: not there, though {unit.name} runs", again)
        elif target.unreachable is None:
            yield fail_finding(
                "log.sock", f"{path}: not there, though the daemon runs: senders are refused", _restart_advice(target)
            )
        else:
            yield ok_finding("log.sock", f"{path}: not there, as no daemon runs")
        return
    owner, group, mode, text = facts
    wanted = (unit["SocketGroup"] or SENDERS) if unit is not None else group
    if status_part(target.status, "places").get("log_socket_of") == "vigild" and unit is not None:
        assert target.service is not None
        yield fail_finding(
            "log.sock",
            f"{text}: made by the daemon though {unit.name} is installed: senders are refused while it restarts",
            f"systemctl stop {target.service.name}; systemctl enable --now {unit.name} {target.service.name}",
        )
    elif mode != 0o660:
        yield fail_finding("log.sock", f"{text}: its mode must be 0660", f"chmod 660 {path}")
    elif group != wanted:
        yield fail_finding(
            "log.sock", f"{text}: its group must be {wanted}, or nobody of it can send", f"chgrp {wanted} {path}"
        )
    elif target.service is not None and target.user is not None and owner not in (target.user.name, "root"):
        yield fail_finding("log.sock", f"{text}: is not {target.user.name}'s", f"chown {target.user.name} {path}")
    elif unit is not None and target.root and (no := _why_no_member_may_use(wanted, path)):
        yield fail_finding(
            "log.sock", f"{text}: members of {wanted} cannot open it ({no})", f"namei -l {path} shows why"
        )
    else:
        yield ok_finding("log.sock", text)


def _why_no_member_may_use(group: str, path: Path) -> str | None:
    member = User.member_of(group)
    return f"there is no group {group}" if member is None else why_unusable(member, path, os.R_OK | os.W_OK)


def log_socket_path(target: Target) -> Path | None:
    """The path of the log socket; None when the settings that name it cannot be read."""
    if target.log_socket is not None and (listen := target.log_socket["Listen"].partition(" ")[0]):
        return Path(listen)
    settings = target.settings
    return None if isinstance(settings, Exception) else target.runtime / settings.ingest.socket


def _check_admin_socket(target: Target) -> Iterator[Finding]:
    if isinstance(target.settings, Exception):
        return
    for address in target.settings.admin.bind:
        if not address.startswith("unix:"):
            continue
        path = target.runtime / address.removeprefix("unix:")
        facts = _socket_facts(path)
        if facts is None:
            if target.unreachable is None:
                yield fail_finding("admin.sock", f"{path}: not there, though the daemon runs", _restart_advice(target))
            else:
                yield ok_finding("admin.sock", f"{path}: not there, as no daemon runs")
            continue
        _, group, mode, text = facts
        wanted = target.service["Group"] if target.service is not None else ""
        if mode & 0o007:
            yield fail_finding("admin.sock", f"{text}: everybody may command the daemon", f"chmod 660 {path}")
        elif mode != 0o660:
            yield warn_finding("admin.sock", f"{text}: its group cannot use it; it should be 0660", f"chmod 660 {path}")
        elif wanted and group != wanted:
            yield fail_finding("admin.sock", f"{text}: its group must be {wanted}", f"chgrp {wanted} {path}")
        else:
            yield ok_finding("admin.sock", text)


def _socket_facts(path: Path) -> tuple[str, str, int, str] | None:
    """(owner, group, mode, all of it in words); None when there is no socket."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(found.st_mode):
        return None
    owner, group, mode = _user_name(found.st_uid), _group_name(found.st_gid), stat.S_IMODE(found.st_mode)
    return owner, group, mode, f"{path}: {owner}:{group}, mode {mode:04o}"


def check_lock(target: Target) -> Iterator[Finding]:
    """Who holds the state directory. The lock is not taken: a daemon that starts meanwhile would be refused."""
    path = target.state / "lock"
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    except PermissionError:
        yield unchecked_finding("lock", f"{path}: permission denied")
        return
    holder = _lock_holder_pid(Path("/proc/locks").read_text(), found.st_dev, found.st_ino)
    if holder is None or holder <= 0:  # a process of another pid namespace has no number here
        if target.unreachable is None and holder is None and target.pid is not None:
            yield warn_finding("lock", f"{path}: nobody holds it, though the daemon runs", _restart_advice(target))
        else:
            yield ok_finding("lock", f"{path}: {'free' if holder is None else 'held outside this container'}")
    elif target.pid is None:
        yield warn_finding("lock", f"{path}: held by process {holder}, which does not answer", f"ps -fp {holder}")
    elif holder != target.pid:
        yield fail_finding(
            "lock",
            f"{path}: held by process {holder}, and the daemon checked is process {target.pid}: two on one state",
            f"ps -fp {holder}; end the one that is not wanted, or give it a state directory of its own",
        )
    else:
        yield ok_finding("lock", f"{path}: held by process {holder}, the daemon")


def _lock_holder_pid(locks: str, device: int, inode: int) -> int | None:
    """The process that holds the flock of a file, from the text of /proc/locks; None if nobody does."""
    file = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    for line in locks.splitlines():
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5] == file:
            return int(words[4])
    return None


def _restart_advice(target: Target) -> str:
    if target.service is None:
        return "stop the daemon and start it again"
    also = f"{target.log_socket.name} " if target.log_socket is not None else ""
    return f"systemctl restart {also}{target.service.name}"


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
