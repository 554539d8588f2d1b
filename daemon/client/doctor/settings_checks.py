"""Checks of settings, rules and token: valid, and readable for the user who runs the daemon."""

from collections.abc import Iterator
from pathlib import Path

from daemon.check_config import check_config
from daemon.client.doctor.finding import Finding, fail_finding, ok_finding, unchecked_finding, warn_finding
from daemon.client.doctor.target_daemon import Target
from daemon.settings_file import SettingsError, rule_directories, token_path

_HOMES = tuple(map(Path, ("/home", "/root", "/run/user")))  # hidden by ProtectHome=


def check_settings(target: Target) -> Iterator[Finding]:
    settings = target.settings
    source = target.config or (settings.path if not isinstance(settings, SettingsError) else None)
    test = f"vigild --config {source} --check" if source else "vigild --check"
    if isinstance(settings, SettingsError):
        hidden = not target.root and "ermission denied" in str(settings)
        yield (
            unchecked_finding("settings", str(settings))
            if hidden
            else fail_finding("settings", str(settings), f"mend it, then: {test}")
        )
        return
    try:
        checked = check_config(settings, target.user, target.env.get("VIGILD_INSTANCE"))
    except SettingsError as exc:
        if not target.root and "ermission denied" in str(exc):
            yield unchecked_finding("settings", str(exc))
        else:
            yield fail_finding("settings", str(exc), f"mend it, then: {test}")
        return
    yield ok_finding("settings", f"{settings.path or 'no file, defaults'}; {checked.rules} rules")
    if checked.token_later:
        yield ok_finding("token", f"{checked.token}: systemd puts it there while the service runs")
    elif checked.token is not None:
        readers = f"readable for {target.user.name}" if target.root and target.user else "readable for you"
        yield ok_finding("token", f"{checked.token}: {readers}")
    protected = target.service is not None and target.service["ProtectHome"] in ("yes", "tmpfs")
    files = [each for each in (settings.path, token_path(settings), *rule_directories(settings)) if each is not None]
    for path in files if protected else ():
        if any(home in path.absolute().parents for home in _HOMES):
            yield fail_finding(
                "settings", f"{path}: the service sees no home directories (ProtectHome=)", "move it to /etc/vigild"
            )
    if settings.path is not None and settings.path.stat().st_mode & 0o002:
        yield warn_finding("settings", f"{settings.path}: everybody may change it", f"chmod o-w {settings.path}")
