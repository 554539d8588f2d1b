"""The settings file: TOML, every key optional, unknown keys refused, every error with file and line.

The first of these is read, and no other: `--config`, the file that `VIGILD_CONFIG` names, `vigild.toml` in
/etc/vigild (systemd's `CONFIGURATION_DIRECTORY`), none. A template instance (`VIGILD_INSTANCE`, set by
vigild@.service) reads `NAME.toml` in place of `vigild.toml`, and by default listens on its Unix sockets only,
since a TCP port can belong to one process. Relative paths in the file are relative to the file, those of
sockets to the runtime directory.

docs/vigild.toml explains every key and holds its default.
"""

import difflib
import importlib.resources
import re
import stat
import tomllib
from collections.abc import Callable, Mapping
from glob import glob
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from daemon.host.listeners import TcpAddress, parse_address
from detection.detection_settings import (
    BOUNDS,
    AlarmSettings,
    DetectionSettings,
    FormatSettings,
    LearningSettings,
    RuleText,
    SessionSettings,
)

SYSTEM_DIRECTORY = "/etc/vigild"
TOKEN_CHARACTERS = 16

_RESERVED_INSTANCES = {"training"}  # a directory of that name belongs to the store of the daemon without a name


class SettingsError(ValueError):
    """One line: file, line number, what is wrong, what is allowed."""


class IngestSettings(msgspec.Struct, frozen=True):
    socket: str = "log.sock"
    max_line_bytes: int = 65536


class CheckpointSettings(msgspec.Struct, frozen=True):
    every_lines: int = 10_000
    every_seconds: float = 300.0
    keep: int = 5


class AlertsSettings(msgspec.Struct, frozen=True):
    """`max_bytes` of alerts.jsonl and verdicts.jsonl together, and what was rotated of them; 0: others rotate them."""

    max_bytes: int = 1 << 30


class AdminSettings(msgspec.Struct, frozen=True):
    bind: tuple[str, ...] = ("unix:admin.sock", "127.0.0.1:8765")
    hosts: tuple[str, ...] = ()
    token_file: str | None = None


class RulesSettings(msgspec.Struct, frozen=True):
    paths: tuple[str, ...] = ()


class Settings(msgspec.Struct, frozen=True):
    """Every setting, validated. `path` is the file they were read from, None without one."""

    ingest: IngestSettings = IngestSettings()
    format: FormatSettings = FormatSettings()
    session: SessionSettings = SessionSettings()
    learning: LearningSettings = LearningSettings()
    alarms: AlarmSettings = AlarmSettings()
    alerts: AlertsSettings = AlertsSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    admin: AdminSettings = AdminSettings()
    rules: RulesSettings = RulesSettings()
    path: Path | None = None

    @property
    def detection(self) -> DetectionSettings:
        """The settings that change verdicts, and therefore belong to the state."""
        return DetectionSettings(self.format, self.session, self.learning, self.alarms)


def load_settings(path: Path | None, env: Mapping[str, str]) -> Settings:
    """The settings from the file that applies; `path` is that of `--config`. Reads files; raises SettingsError."""
    instance = env.get("VIGILD_INSTANCE")
    if instance in _RESERVED_INSTANCES:
        raise SettingsError(f"an instance cannot be named {instance!r}: the name is taken by the state directory")
    unset = Settings()
    if instance is not None:
        unset = Settings(admin=AdminSettings(bind=("unix:admin.sock",)))
    try:
        found = _find_settings_file(path, env, instance)
        if found is None:
            return unset
        text = _read_regular_file(found)
    except (OSError, ValueError) as exc:
        raise SettingsError(_unreadable_file_error(exc, path or SYSTEM_DIRECTORY)) from exc
    return parse_settings(text, found, unset)


def _find_settings_file(path: Path | None, env: Mapping[str, str], instance: str | None) -> Path | None:
    if path is not None:
        return path
    if named := env.get("VIGILD_CONFIG"):
        return Path(named)
    directory = Path(env.get("CONFIGURATION_DIRECTORY", SYSTEM_DIRECTORY).split(":")[0])
    usual = directory / ("vigild.toml" if instance is None else f"{instance}.toml")
    return usual if usual.exists() else None


def parse_settings(text: str, path: Path, unset: Settings | None = None) -> Settings:
    """The settings in `text`, the content of `path`, with defaults from `unset`. Raises SettingsError."""
    unset = unset or Settings()
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # TOMLDecodeError, a number of thousands of digits, deep nesting
        raise SettingsError(_settings_syntax_error(path, str(exc))) from exc
    sections: dict[str, Any] = {}
    for name, table in tables.items():
        place = f"{path}:{_line_of_setting(text, name)}"
        if name not in _SECTIONS:
            raise SettingsError(f"{place}: unknown section [{name}]{_nearest_setting_name(name, _SECTIONS)}")
        if not isinstance(table, dict):
            raise SettingsError(f"{place}: {name} is a section: write [{name}] and its keys below it")
        section = getattr(unset, name)
        known = {each.name: each for each in msgspec.structs.fields(section)}
        values: dict[str, Any] = {}
        for key, value in table.items():
            place = f"{path}:{_line_of_setting(text, name, key)}"
            if key not in known:
                raise SettingsError(f"{place}: unknown key {key!r} in [{name}]{_nearest_setting_name(key, known)}")
            try:
                values[key] = _checked_setting(f"{name}.{key}", value, known[key].type)
            except ValueError as exc:  # ours, and msgspec's ValidationError
                raise SettingsError(f"{place}: {key} in [{name}] {exc}") from exc
        sections[name] = msgspec.structs.replace(section, **values)
    whole = Settings(**{name: sections.get(name, getattr(unset, name)) for name in _SECTIONS}, path=path)
    _refuse_open_admin(text, whole)
    return whole


def read_rule_files(settings: Settings) -> tuple[RuleText, ...]:
    """The built-in pack, then the files of `[rules] paths` in order.

    A path is a file, a directory (its *.toml, by name) or a glob. Raises SettingsError for a missing file, for one that
    cannot be read as text, and for what is no regular file.
    """
    pack = importlib.resources.files("detection").joinpath("rulepack.toml").read_text("utf-8")
    texts = [RuleText("builtin", pack)]
    for entry in settings.rules.paths:
        place = _path_beside_settings(settings, entry)
        try:
            for path in _rule_files_of_entry(place, entry):
                place = path
                texts.append(RuleText(str(path), _read_regular_file(path)))
        except (OSError, ValueError) as exc:
            raise SettingsError(_unreadable_file_error(exc, place)) from exc
    return tuple(texts)


def _rule_files_of_entry(path: Path, entry: str) -> list[Path]:
    # An empty directory or a glob without a match is no error: rules may come later. A missing file is one.
    if path.is_dir():
        return sorted(path.glob("*.toml"))
    if any(sign in entry for sign in "*?["):
        return sorted(Path(each) for each in glob(str(path), recursive=True))
    return [path]


def _read_regular_file(path: Path) -> str:
    # Before it is opened: a FIFO would wait for its writer, and a device may never end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("is not a regular file")
    return path.read_text("utf-8")


def _unreadable_file_error(exc: OSError | ValueError, path: Path | str) -> str:
    if isinstance(exc, OSError):
        return f"{exc.filename or path}: {exc.strerror}"
    return f"{path}: {'is not UTF-8 text' if isinstance(exc, UnicodeDecodeError) else exc}"


def read_token(settings: Settings) -> str | None:
    """The secret that admin requests over TCP must carry, None if none is set. Raises SettingsError."""
    path = token_path(settings)
    if path is None:
        return None
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise SettingsError(f"{path}: is not a file; token_file in [admin] names one that holds the token alone")
        if mode & 0o007:
            raise SettingsError(f"{path}: everybody can read this token; chmod 600 it")
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "is not ASCII text"
        raise SettingsError(f"{path}: the token (token_file in [admin]) cannot be read: {reason}") from exc
    if len(token) < TOKEN_CHARACTERS or not token.isprintable() or " " in token:
        raise SettingsError(f"{path}: a token is one word of at least {TOKEN_CHARACTERS} printable characters")
    return token


def token_path(settings: Settings) -> Path | None:
    """The file that `read_token` reads, None if no token is set."""
    return None if settings.admin.token_file is None else _path_beside_settings(settings, settings.admin.token_file)


def rule_directories(settings: Settings) -> list[Path]:
    """The directories in which `read_rule_files` looks for files."""
    return [path for entry in settings.rules.paths if (path := _path_beside_settings(settings, entry)).is_dir()]


def _path_beside_settings(settings: Settings, entry: str) -> Path:
    return (settings.path.parent if settings.path else Path()) / Path(entry).expanduser()


# Bounds of values, both inclusive. `_CHECKS` has functions for what bounds cannot express.
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "ingest.max_line_bytes": (256, 1_048_576),
    **BOUNDS,
    "alerts.max_bytes": (0, 1 << 50),
    "checkpoint.every_lines": (1, 1_000_000_000),
    "checkpoint.every_seconds": (0.1, 86_400),
    "checkpoint.keep": (2, 1000),
}

_SECTIONS = ("ingest", "format", "session", "learning", "alarms", "alerts", "checkpoint", "admin", "rules")

T = TypeVar("T")


def _checked_setting(name: str, value: object, kind: Any) -> Any:
    try:
        converted = msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise ValueError(f"is {_shown_setting_value(value)}, but must be {_allowed_values_text(name, kind)}") from None
    if name in _BOUNDS:
        least, most = _BOUNDS[name]
        if not least <= converted <= most:  # written so that nan fails
            raise ValueError(f"is {_shown_setting_value(value)}, but must be {_allowed_values_text(name, kind)}")
    if name in _CHECKS:
        _CHECKS[name](converted)
    return converted


def _allowed_values_text(name: str, kind: Any) -> str:
    noun = {
        int: "a whole number",
        float: "a number",
        float | None: "a number",
        str: "a text in quotes",
        str | None: "a text in quotes",
        tuple[str, ...]: 'a list of texts, such as ["a", "b"]',
    }.get(kind, "one of " + ", ".join(f'"{each}"' for each in getattr(kind, "__args__", ())))
    if name not in _BOUNDS:
        return noun
    least, most = _BOUNDS[name]
    return f"{noun} from {least:,} to {most:,}"


def _shown_setting_value(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_socket_path(path: str) -> None:
    if not path or "\0" in path or path.startswith("unix:"):
        raise ValueError(f'is {_shown_setting_value(path)}, but must be a path, such as "log.sock"')


def _check_log_kind(kind: str) -> None:
    if kind == "auto":
        return
    from detection.formats.kinds import KINDS  # it imports numpy, which the default "auto" does not need

    if kind not in KINDS:
        raise ValueError(
            f"is {_shown_setting_value(kind)}, but must be one of "
            + ", ".join(f'"{each}"' for each in ("auto", *KINDS))
        )


def _check_session_key(key: str) -> None:
    if key == "auto":
        return
    from detection.sessions.key_pattern import compiled_key_pattern  # re2 comes with it

    try:
        groups = compiled_key_pattern(key).groups
    except ValueError as exc:
        raise ValueError(f"is no regular expression that RE2 knows: {exc}") from exc
    if groups != 1:
        raise ValueError(
            f'has {groups} groups, but must have exactly one: the session\'s key, such as "(blk_-?[0-9]+)"'
        )


def _check_bind_addresses(addresses: tuple[str, ...]) -> None:
    if not addresses:
        raise ValueError("is empty, but the daemon must be reachable; leave the key out for the default")
    for address in addresses:
        parse_address(address)


def _check_retrain_lines(lines: int) -> None:
    if 0 < lines < 100:
        raise ValueError(f"is {lines}, but must be 0 (learn no more) or a whole number from 100 to 1,000,000,000")


_CHECKS: Mapping[str, Callable[[Any], None]] = {
    "ingest.socket": _check_socket_path,
    "format.kind": _check_log_kind,
    "session.key": _check_session_key,
    "learning.retrain_lines": _check_retrain_lines,
    "admin.bind": _check_bind_addresses,
}


def _refuse_open_admin(text: str, settings: Settings) -> None:
    for address in map(parse_address, settings.admin.bind):
        if isinstance(address, TcpAddress) and not address.loopback and settings.admin.token_file is None:
            line = _line_of_setting(text, "admin", "bind")
            raise SettingsError(
                f"{settings.path}:{line}: {address} can be reached from other hosts: "
                "set token_file in [admin] too, or bind a loopback address"
            )


def _nearest_setting_name(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _settings_syntax_error(path: Path, message: str) -> str:
    if found := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL):
        return f"{path}:{found[2]}: {found[1]} (column {found[3]})"
    return f"{path}: {message}"


def _line_of_setting(text: str, *keys: str) -> int:
    """The line of `text` on which the statement begins that sets `keys`, counting from 1.

    tomllib keeps no positions, and a scanner of our own would be a second parser to get wrong. Instead: the shortest
    prefix of `text` that parses and holds the key ends with its statement, and the longest prefix that parses without
    it ends just before. They are found by bisection over the lines with which a statement can end.
    """
    lines = text.split("\n")
    ends = [number for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")]
    low, high, found = 0, len(ends), False
    before = 0
    while low < high:
        middle = at = (low + high) // 2
        while at < high and (holds := _prefix_holds_key(lines[: ends[at]], keys)) is None:
            at += 1  # the middle of a statement of several lines
        if at == high or holds:
            high, found = middle, found or at < high
        else:
            low, before = at + 1, ends[at]
    return next(number for number in ends if number > before) if found else len(lines)


def _prefix_holds_key(lines: list[str], keys: tuple[str, ...]) -> bool | None:
    """None when they do not parse."""
    try:
        tables: Any = tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError:
        return None
    for key in keys:
        tables = tables.get(key) if isinstance(tables, dict) else None
    return tables is not None
