import os
import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from daemon.settings_file import (
    AdminSettings,
    Settings,
    SettingsError,
    load_settings,
    parse_settings,
    read_rule_files,
    read_token,
)
from detection.detection_settings import DetectionSettings, LearningSettings

EXAMPLE = Path(__file__).parents[2] / "docs" / "vigild.toml"


def message(text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_settings(text, Path("vigild.toml"))
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_the_example_holds_every_key_with_its_default() -> None:
    text = EXAMPLE.read_text("utf-8")
    assert parse_settings(text, EXAMPLE) == Settings(path=EXAMPLE)
    uncommented = tomllib.loads(re.sub(r"(?m)^# (alpha|token_file) =", r"\1 =", text))
    for section, keys in uncommented.items():
        assert set(keys) == {each.name for each in msgspec.structs.fields(getattr(Settings(), section))}
    assert set(uncommented) == set(Settings.__struct_fields__) - {"path"}


def test_what_the_example_says_about_bounds_is_what_is_checked() -> None:
    text = EXAMPLE.read_text("utf-8")
    parse_settings(text.replace("keep = 5", "keep = 1000"), EXAMPLE)
    with pytest.raises(SettingsError, match="from 2 to 1,000"):
        parse_settings(text.replace("keep = 5", "keep = 1001"), EXAMPLE)


def test_given_keys_are_taken_and_the_others_keep_their_defaults() -> None:
    settings = parse_settings("[learning]\nwarmup_lines = 4000\n[session]\nidle_seconds = 30\n", Path("a.toml"))
    assert settings.learning == LearningSettings(warmup_lines=4000)
    assert settings.session.idle_seconds == 30.0 and isinstance(settings.session.idle_seconds, float)
    assert settings.detection == DetectionSettings(session=settings.session, learning=settings.learning)


def test_retraining_is_switched_off_or_does_not_follow_at_every_step() -> None:
    assert parse_settings("[learning]\nretrain_lines = 0\n", Path("a.toml")).learning.retrain_lines == 0
    assert message("[learning]\nretrain_lines = 99\n") == (
        "vigild.toml:2: retrain_lines in [learning] is 99, but must be 0 (learn no more) or a whole number from 100 "
        "to 1,000,000,000"
    )


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() -> None:
    text = "# first\n\n[learning]\nretrain_lines = 60_000\n\nwarmup_line = 1\n"
    assert message(text) == ("vigild.toml:6: unknown key 'warmup_line' in [learning]; did you mean 'warmup_lines'?")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[admin]\nbind = [\n  "unix:a",\n  "nonsense",\n]\n', 2),
        ("[ingest]\n\n\nlearning.x = 1\n", 4),
        ("ingest = {max_line_bytes = 1}\n", 1),
        ("\ningest.max_line_bytes = 1\n", 2),
        ('[session]\nkey = """\n[session]\nkey="""\n', 2),
        ("[rules]\npaths = []\n[checkpoint]\n# keep = 9\nkeep = 0\nevery_lines = 5\n", 5),
        ("[ingest]\n[format]\n[typo]\n[alarms]\n", 3),
        ("alarms = 5", 1),
    ],
)
def test_the_line_is_where_the_statement_begins(text: str, line: int) -> None:
    assert message(text).startswith(f"vigild.toml:{line}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[learning]\nwarmup_lines = "many"',
            'warmup_lines in [learning] is "many", but must be a whole number',
        ),
        ("[learning]\nwarmup_lines = 1.5", "is 1.5, but must be a whole number from 100 to 100,000,000"),
        ("[learning]\nwarmup_lines = true", "is true, but must be a whole number"),
        ("[alarms]\nper_day = nan", "is nan, but must be a number from 0.001"),
        ("[alarms]\nalpha = 0.9", "is 0.9, but must be a number from 1e-09 to 0.5"),
        ('[alarms]\nverdicts = "some"', 'must be one of "flagged", "all"'),
        ("[checkpoint]\nkeep = 1", "is 1, but must be a whole number from 2"),
        ('[rules]\npaths = "mine.toml"', "must be a list of texts"),
        ('[session]\nkey = "blk_"', "has 0 groups, but must have exactly one"),
        ('[session]\nkey = "(blk_"', "is no regular expression that RE2 knows: missing )"),
        ('[ingest]\nsocket = ""', "must be a path"),
        ('[admin]\nbind = ["example.org:1"]', "'example.org' is not an IP address"),
        ("[admin]\nbind = []", "bind in [admin] is empty"),
        ('[admin]\nbind = ["0.0.0.0:8765"]', "can be reached from other hosts: set token_file"),
        ("[learning\n", "(column 10)"),
    ],
)
def test_an_error_names_what_is_wrong_and_what_is_allowed(text: str, said: str) -> None:
    assert said in message(text)


def test_an_address_for_other_hosts_is_accepted_with_a_token() -> None:
    text = '[admin]\nbind = ["0.0.0.0:8765"]\ntoken_file = "token"\n'
    assert parse_settings(text, Path("a.toml")).admin.bind == ("0.0.0.0:8765",)


def test_the_first_place_that_names_settings_wins(tmp_path: Path) -> None:
    for number, name in enumerate(("given", "variable", "vigild", "web"), 101):
        (tmp_path / f"{name}.toml").write_text(f"[learning]\nwarmup_lines = {number}\n")
    env = {"CONFIGURATION_DIRECTORY": str(tmp_path)}

    assert load_settings(None, env).learning.warmup_lines == 103
    assert load_settings(None, {**env, "VIGILD_INSTANCE": "web"}).learning.warmup_lines == 104
    env["VIGILD_CONFIG"] = str(tmp_path / "variable.toml")
    assert load_settings(None, env).learning.warmup_lines == 102
    assert load_settings(tmp_path / "given.toml", env).learning.warmup_lines == 101
    assert load_settings(None, {"CONFIGURATION_DIRECTORY": str(tmp_path / "none")}) == Settings()


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: No such file"):
        load_settings(tmp_path / "none.toml", {})
    with pytest.raises(SettingsError, match=r"none\.toml: No such file"):
        load_settings(None, {"VIGILD_CONFIG": str(tmp_path / "none.toml")})


def test_an_instance_listens_on_its_unix_socket_only_unless_its_file_says_otherwise(tmp_path: Path) -> None:
    env = {"CONFIGURATION_DIRECTORY": str(tmp_path), "VIGILD_INSTANCE": "web"}
    assert load_settings(None, env).admin.bind == ("unix:admin.sock",)
    (tmp_path / "web.toml").write_text("[admin]\nhosts = ['logs.example']\n")
    assert load_settings(None, env).admin == AdminSettings(bind=("unix:admin.sock",), hosts=("logs.example",))
    (tmp_path / "web.toml").write_text("[admin]\nbind = ['127.0.0.1:8800']\n")
    assert load_settings(None, env).admin.bind == ("127.0.0.1:8800",)


def test_an_instance_cannot_take_the_name_of_a_directory_of_the_store() -> None:
    with pytest.raises(SettingsError, match="'training'"):
        load_settings(None, {"VIGILD_INSTANCE": "training"})


def test_rules_are_the_builtin_pack_and_then_files_directories_and_globs(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    for name in ("one.toml", "sets/b.toml", "sets/a.toml", "x1.toml", "x2.toml", "sets/notes.txt"):
        (tmp_path / name).write_text(f"# {name}\n")
    settings = parse_settings('[rules]\npaths = ["one.toml", "sets", "x*.toml"]\n', tmp_path / "vigild.toml")
    builtin, *own = read_rule_files(settings)
    assert builtin.name == "builtin" and "[[rule]]" in builtin.text
    assert [rule.text for rule in own] == [
        "# one.toml\n", "# sets/a.toml\n", "# sets/b.toml\n", "# x1.toml\n", "# x2.toml\n",
    ]  # fmt: skip


def test_a_missing_rules_file_is_an_error_and_not_an_empty_set(tmp_path: Path) -> None:
    settings = parse_settings('[rules]\npaths = ["mine.toml"]\n', tmp_path / "vigild.toml")
    with pytest.raises(SettingsError, match=r"mine\.toml: No such file"):
        read_rule_files(settings)


def test_a_token_is_read_beside_the_file_and_refused_where_everybody_can_read_it(tmp_path: Path) -> None:
    settings = parse_settings('[admin]\ntoken_file = "token"\n', tmp_path / "vigild.toml")
    token = tmp_path / "token"
    token.write_text("correct-horse-battery\n")
    os.chmod(token, 0o600)
    assert read_token(settings) == "correct-horse-battery"
    os.chmod(token, 0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        read_token(settings)
    os.chmod(token, 0o600)
    token.write_text("short\n")
    with pytest.raises(SettingsError, match="at least 16"):
        read_token(settings)
    token.unlink()
    with pytest.raises(SettingsError, match=r"token: the token \(token_file in \[admin\]\) cannot be read: No such"):
        read_token(settings)
    token.mkdir()
    with pytest.raises(SettingsError, match="token: is not a file"):
        read_token(settings)
    assert read_token(Settings()) is None


@pytest.mark.parametrize(
    "before", ["", "\n\n# a comment\n", 'bind = [\n  "unix:a",\n  # why\n  "unix:b",\n]\n', '# "\n' * 300]
)
@pytest.mark.parametrize("after", ["", "\n# another\n", "[learning]\nwarmup_lines = 5\n" + "\n" * 3000])
def test_an_error_names_the_line_whatever_stands_around_it(before: str, after: str) -> None:
    text = f"[admin]\n{before}tokn_file = 'x'\n{after}"
    line = text.split("\n").index("tokn_file = 'x'") + 1
    assert message(text).startswith(f"vigild.toml:{line}: unknown key 'tokn_file' in [admin]")
