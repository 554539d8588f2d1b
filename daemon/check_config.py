"""`vigild --check`: read settings, rules and token as the daemon will, as the user that it runs as.

Root can read every file, the service cannot: a token file of root's with mode 600 would pass a check by root, and keep
the service from starting.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.file_access import User, why_unreadable
from daemon.settings_file import Settings, SettingsError, read_rules, read_token, rule_directories, token_path
from detection.detection_settings import RuleText

CREDENTIALS = Path("/run/credentials")  # systemd's, there while the service runs


@dataclass(frozen=True, slots=True)
class CheckedConfig:
    """`rules`: how many. `token`: the file, None if none is set. `token_later`: systemd provides it at the start."""

    rules: int
    token: Path | None
    token_later: bool


def check_config(settings: Settings, user: User | None, instance: str | None = None) -> CheckedConfig:
    """Check everything that a start reads. Raises SettingsError: one line that says what to do.

    `user` runs the service, or its `instance`. Run as root, this also checks that `user` can read each file.
    """
    texts = read_rules(settings)
    count = _count_compiled_rules(texts)
    token = token_path(settings)
    later = token is not None and CREDENTIALS in token.parents and not token.exists()
    if not later:
        read_token(settings)
    if user is not None and os.geteuid() == 0 and user.uid != 0:
        _refuse_unreadable_config(settings, texts, None if later else token, user, instance)
    return CheckedConfig(count, token, later)


def _count_compiled_rules(texts: Sequence[RuleText]) -> int:
    from detection.rules.rule_files import RuleError
    from detection.rules.rule_matching import RuleSet  # numpy and re2 come with it

    try:
        return len(RuleSet.compile(tuple(texts)).rules)
    except RuleError as exc:
        raise SettingsError(str(exc)) from exc


def _refuse_unreadable_config(
    settings: Settings, texts: Sequence[RuleText], token: Path | None, user: User, instance: str | None
) -> None:
    readable = [settings.path] if settings.path else []
    readable += [*rule_directories(settings), *(Path(text.name) for text in texts[1:])]
    if found := why_unreadable(user, readable):
        path, reason = found
        raise SettingsError(f"{path}: {user.name}, who runs the service, cannot read it ({reason}); chmod o+r it")
    if token is not None and (found := why_unreadable(user, [token])):
        path, reason = found
        unit = "vigild" if instance is None else f"vigild@{instance}"
        raise SettingsError(
            f"{path}: {user.name}, who runs the service, cannot read the token ({reason}); chown {user.name} it, or "
            f'have systemd hand it over: LoadCredential=token:{path} in "systemctl edit {unit}", and '
            f'token_file = "{CREDENTIALS}/{unit}.service/token" in [admin]'
        )
