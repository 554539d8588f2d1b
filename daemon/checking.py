"""`vigild --check`: settings, rules and token, read as the daemon will read them and by the user it runs as.

Root may read every file; the service may not. A token of root's with mode 600 would be in order for whoever checks it
as root, and keep the service from starting.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.access import User, why_unreadable
from daemon.settings import Settings, SettingsError, read_rules, read_token, rule_directories, token_path
from detection.settings import RuleText

CREDENTIALS = Path("/run/credentials")  # systemd's, there while the service runs


@dataclass(frozen=True, slots=True)
class Checked:
    """`token`: None when none is set, else where it is read from; `token_later`: only the running service has it."""

    rules: int
    token: Path | None
    token_later: bool


def check(settings: Settings, user: User | None, instance: str | None = None) -> Checked:
    """Everything that is to be read at a start. Raises SettingsError with one line that says what to do.

    With `user`, who runs the service (the `instance`, where it is one), each file must be readable for him too, when
    we are root and can find out.
    """
    texts = read_rules(settings)
    count = _compiled(texts)
    token = token_path(settings)
    later = token is not None and CREDENTIALS in token.parents and not token.exists()
    if not later:
        read_token(settings)
    if user is not None and os.geteuid() == 0 and user.uid != 0:
        _refuse_unreadable(settings, texts, None if later else token, user, instance)
    return Checked(count, token, later)


def _compiled(texts: Sequence[RuleText]) -> int:
    from detection.rules.engine import RuleSet  # numpy and re2 come with it
    from detection.rules.files import RuleError

    try:
        return len(RuleSet.compile(tuple(texts)).rules)
    except RuleError as exc:
        raise SettingsError(str(exc)) from exc


def _refuse_unreadable(
    settings: Settings, texts: Sequence[RuleText], token: Path | None, user: User, instance: str | None
) -> None:
    open_to_him = [settings.path] if settings.path else []
    open_to_him += [*rule_directories(settings), *(Path(text.name) for text in texts[1:])]
    if found := why_unreadable(user, open_to_him):
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
