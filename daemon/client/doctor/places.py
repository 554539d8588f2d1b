"""Groups, directories and sockets, as the service's user and those who send lines meet them."""

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from daemon.access import User, why_unusable
from daemon.client.doctor.finding import Finding, fail, ok, unseen, warn
from daemon.client.doctor.scene import Scene, part

SENDERS = "vigild-log"  # systemd/vigild.sysusers
_SHOWN = 12


def check_groups(scene: Scene) -> Iterator[Finding]:
    """Who may send and who may command. A plain daemon has its user's group and no other."""
    if scene.service is None:
        return
    make = "install vigild again, or, with its vigild.conf in /usr/lib/sysusers.d: systemd-sysusers"
    if scene.user is None:
        yield fail("users", f"there is no user {scene.service['User']}: the service cannot start", make)
    commanders = scene.service["Group"] or (scene.user.name if scene.user else "vigild")
    senders = (scene.log_socket["SocketGroup"] if scene.log_socket else "") or SENDERS
    for group, what in ((senders, "send lines"), (commanders, "ask and command")):
        try:
            members = _members(group, scene.user)
        except KeyError:
            yield fail("users", f"there is no group {group}, whose members may {what}", make)
            continue
        names = ", ".join(members[:_SHOWN]) + (", ..." if len(members) > _SHOWN else "")
        text = f"root and {names} may {what} (group {group})"
        alone = f"only root may {what}; to add somebody: usermod --append --groups {group} USER"
        yield ok("users", text if members else alone)


def _members(group: str, service: User | None) -> list[str]:
    entry = grp.getgrnam(group)
    primary = [each.pw_name for each in pwd.getpwall() if each.pw_gid == entry.gr_gid]
    names = dict.fromkeys([*entry.gr_mem, *primary])
    return [name for name in names if service is None or name != service.name]


def check_directories(scene: Scene) -> Iterator[Finding]:
    yield from _check_directory(scene, "state directory", scene.state, private=True)
    yield from _check_directory(scene, "runtime directory", scene.runtime, private=False)


def _check_directory(scene: Scene, name: str, path: Path, private: bool) -> Iterator[Finding]:
    user = scene.user
    try:
        found = path.lstat()
    except FileNotFoundError:
        if scene.silence is None:
            yield fail(name, f"{path} is gone, while the daemon runs", _restart(scene))
        else:
            yield ok(name, f"{path}: not there yet; the first start makes it")
        return
    owner, mode = _user_name(found.st_uid), stat.S_IMODE(found.st_mode)
    facts = f"{path}: {owner}, mode {mode:04o}"
    if not stat.S_ISDIR(found.st_mode) and not (path.is_dir() and found.st_uid == 0):
        yield fail(name, f"{path}: is no directory", "move it out of the way")
    elif user is not None and path.stat().st_uid != user.uid and (private or scene.service is not None):
        yield fail(
            name, f"{facts}; the daemon runs as {user.name}", f"chown {'-R ' if private else ''}{user.name}: {path}"
        )
    elif private and mode & 0o077:
        yield fail(name, f"{facts}: others can read what it remembers", f"chmod 700 {path}")
    elif not private and mode & 0o022:
        yield fail(name, f"{facts}: others may replace its sockets", f"chmod go-w {path}")
    elif not private and scene.service is not None and mode & 0o011 != 0o011:
        yield fail(name, f"{facts}: members of {SENDERS} cannot pass", f"chmod 755 {path}")
    elif scene.root and user is not None and (no := why_unusable(user, path, os.R_OK | os.W_OK | os.X_OK)):
        yield fail(
            name, f"{facts}: {user.name} cannot use it ({no})", f"namei -l {path} shows which directory forbids it"
        )
    else:
        yield ok(name, facts)


def check_sockets(scene: Scene) -> Iterator[Finding]:
    yield from _check_log_socket(scene)
    yield from _check_admin_socket(scene)


def _check_log_socket(scene: Scene) -> Iterator[Finding]:
    path, unit = log_socket_path(scene), scene.log_socket
    if path is None:
        return
    facts = _socket_facts(path)
    if facts is None:
        if unit is not None and unit.running:
            again = f"systemctl restart {unit.name}"
            yield fail("log.sock", f"{path}: not there, though {unit.name} runs", again)
        elif scene.silence is None:
            yield fail("log.sock", f"{path}: not there, though the daemon runs: senders are refused", _restart(scene))
        else:
            yield ok("log.sock", f"{path}: not there, as no daemon runs")
        return
    owner, group, mode, text = facts
    wanted = (unit["SocketGroup"] or SENDERS) if unit is not None else group
    if part(scene.status, "places").get("log_socket_of") == "vigild" and unit is not None:
        assert scene.service is not None
        yield fail(
            "log.sock",
            f"{text}: made by the daemon though {unit.name} is installed: senders are refused while it restarts",
            f"systemctl stop {scene.service.name}; systemctl enable --now {unit.name} {scene.service.name}",
        )
    elif mode != 0o660:
        yield fail("log.sock", f"{text}: its mode must be 0660", f"chmod 660 {path}")
    elif group != wanted:
        yield fail(
            "log.sock", f"{text}: its group must be {wanted}, or nobody of it can send", f"chgrp {wanted} {path}"
        )
    elif scene.service is not None and scene.user is not None and owner not in (scene.user.name, "root"):
        yield fail("log.sock", f"{text}: is not {scene.user.name}'s", f"chown {scene.user.name} {path}")
    elif unit is not None and scene.root and (no := _why_no_member(wanted, path)):
        yield fail("log.sock", f"{text}: members of {wanted} cannot open it ({no})", f"namei -l {path} shows why")
    else:
        yield ok("log.sock", text)


def _why_no_member(group: str, path: Path) -> str | None:
    member = User.member_of(group)
    return f"there is no group {group}" if member is None else why_unusable(member, path, os.R_OK | os.W_OK)


def log_socket_path(scene: Scene) -> Path | None:
    """Where senders find the daemon; None when the settings that say so cannot be read."""
    if scene.log_socket is not None and (listen := scene.log_socket["Listen"].partition(" ")[0]):
        return Path(listen)
    settings = scene.settings
    return None if isinstance(settings, Exception) else scene.runtime / settings.ingest.socket


def _check_admin_socket(scene: Scene) -> Iterator[Finding]:
    if isinstance(scene.settings, Exception):
        return
    for address in scene.settings.admin.bind:
        if not address.startswith("unix:"):
            continue
        path = scene.runtime / address.removeprefix("unix:")
        facts = _socket_facts(path)
        if facts is None:
            if scene.silence is None:
                yield fail("admin.sock", f"{path}: not there, though the daemon runs", _restart(scene))
            else:
                yield ok("admin.sock", f"{path}: not there, as no daemon runs")
            continue
        _, group, mode, text = facts
        wanted = scene.service["Group"] if scene.service is not None else ""
        if mode & 0o007:
            yield fail("admin.sock", f"{text}: everybody may command the daemon", f"chmod 660 {path}")
        elif mode != 0o660:
            yield warn("admin.sock", f"{text}: its group cannot use it; it should be 0660", f"chmod 660 {path}")
        elif wanted and group != wanted:
            yield fail("admin.sock", f"{text}: its group must be {wanted}", f"chgrp {wanted} {path}")
        else:
            yield ok("admin.sock", text)


def _socket_facts(path: Path) -> tuple[str, str, int, str] | None:
    """(owner, group, mode, all of it in words), None where there is no socket."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(found.st_mode):
        return None
    owner, group, mode = _user_name(found.st_uid), _group_name(found.st_gid), stat.S_IMODE(found.st_mode)
    return owner, group, mode, f"{path}: {owner}:{group}, mode {mode:04o}"


def check_lock(scene: Scene) -> Iterator[Finding]:
    """Whose the state directory is now. The lock itself is not touched: a daemon that starts would find it taken."""
    path = scene.state / "lock"
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    except PermissionError:
        yield unseen("lock", f"{path}: permission denied")
        return
    holder = _holder(Path("/proc/locks").read_text(), found.st_dev, found.st_ino)
    if holder is None or holder <= 0:  # a process of another namespace has no number here
        if scene.silence is None and holder is None and scene.pid is not None:
            yield warn("lock", f"{path}: nobody holds it, though the daemon runs", _restart(scene))
        else:
            yield ok("lock", f"{path}: {'free' if holder is None else 'held outside this container'}")
    elif scene.pid is None:
        yield warn("lock", f"{path}: held by process {holder}, which does not answer", f"ps -fp {holder}")
    elif holder != scene.pid:
        yield fail(
            "lock",
            f"{path}: held by process {holder}, and the daemon looked at is process {scene.pid}: two on one state",
            f"ps -fp {holder}; end the one that is not wanted, or give it a state directory of its own",
        )
    else:
        yield ok("lock", f"{path}: held by process {holder}, the daemon")


def _holder(locks: str, device: int, inode: int) -> int | None:
    """The process that holds the flock of a file, by the text of /proc/locks."""
    file = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    for line in locks.splitlines():
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5] == file:
            return int(words[4])
    return None


def _restart(scene: Scene) -> str:
    if scene.service is None:
        return "stop the daemon and start it again"
    also = f"{scene.log_socket.name} " if scene.log_socket is not None else ""
    return f"systemctl restart {also}{scene.service.name}"


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
