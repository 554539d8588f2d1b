"""vigild on the machine it is for, from the documents alone: the tests tell one story, in this order."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from detection.members.registry import NAMES
from tests.system.documents import commands
from tests.system.machine import START_SECONDS
from tests.system.story import (
    ACCESS,
    ADMIN,
    CHECKOUT,
    MESSAGES,
    PAGES,
    PROJECT,
    SENDER,
    SOCKET,
    STATE,
    STRANGER,
    Sending,
    Story,
    documented,
)

RELEASE_BEFORE = "f6776d7"
GOLDEN_LINES = 1701  # of tests/golden/state-1.json
DROP_INS = "/etc/systemd/system/vigild.service.d"
# No fewer: one member judges the values of parameters, and has to have seen 200 sessions that have some.
WARMUP_LINES = 9500
FIRST_LINES = {ACCESS: 8500, MESSAGES: 400}  # sent before anything is trained
COMPARED_LINES = 100
TRAINING_SECONDS = 600.0  # a fraction of it on an idle machine; the trainer yields to everyone
RATES = {ACCESS: 200, MESSAGES: 50}  # lines a second
SETTINGS = """\
[learning]
early_lines = 4000
warmup_lines = {warmup}
retrain_lines = {retrain}
retrain_seconds = 0
[alarms]
verdicts = "all"
"""


ATTACK = (
    '192.0.2.1 - - [06/Jun/2015:12:00:00 +0000] "GET /?id=1+UNION+SELECT+password+FROM+users HTTP/1.1" 200 1 "-" "-"'
)
# The commands of the documents that the story does not run, and why.
EXCEPTIONS = {
    "make run": "a demonstration without a service; tests/daemon/demo/test_demo.py runs it",
    "make test": "what CI runs before this",
    "make test-interpreters": "tests on other interpreters, not the service; tests/interpreters",
    "make system-test": "this",
    "docker compose up --build -d": "another way to run it, which needs Docker",
    "docker compose exec vigild vigilctl status": "another way to run it, which needs Docker",
    "make install": "the upgrade at the end of the story",
    "sudo ./install.sh": "the beginning of the story",
    "systemctl restart": "no command without a unit",
    "systemctl stop": "no command without a unit",
    "sudo ./install.sh --uninstall": "the end of what the documents say, so it comes after all of it",
    "systemctl edit vigild": "opens an editor",
    'module(load="omprog")': "a setting of rsyslog",
    'action(type="omprog" template="RSYSLOG_TraditionalFileFormat" '
    'binary="/usr/bin/socat -u STDIN UNIX-CONNECT:/run/vigild/log.sock")': "a setting of rsyslog; socat is run above",
}
# What a reader puts his own for.
_OWN = {r"\bNAME\b": "web", r"(?<=feedback )\d+": "{alert}"}
# What has to be done again, because the next command expects it.
_UNDONE = {"systemctl stop vigild": "systemctl start vigild"}
# They go on until they are ended; of those that feed, a line has to arrive.
ENDLESS = re.compile(r"^tail -F |^journalctl -f |^vigilctl tail$|^curl -N ")
FEEDS = re.compile(r"^tail -F |^journalctl -f ")
TIMED_OUT = 124
# The client of an access line, as the format reads it, and as it did when Python 3.11.2 misread it.
ATOMIC = r'rb"(?>(?:[^\s\[]++ (?=[0-9a-fA-F]{0,4}[.:][0-9a-fA-F.:]++ |[0-9]{1,3}\.[0-9.]++ ))?)"'
POSSESSIVE = r'rb"(?:[^\s\[]++ (?=[0-9a-fA-F]{0,4}[.:][0-9a-fA-F.:]++ |[0-9]{1,3}\.[0-9.]++ ))?+"'


# --- what each part of the story is checked by; the controls at its end call the same ---------------


def every_member_judges(story: Story) -> None:
    """The model in force has all members, and none of them is missing from the answers."""
    status = story.machine.status()
    missing = [name for name in NAMES if not status["active_models"].get(name)]
    assert status["phase"] == "ensemble" and missing == [], (status["phase"], missing, status["training"])
    assert [answer for answer in answers(story) if set(NAMES) - set(answer["details"])] == []


def clients_are_read(story: Story, *, after: int = 0) -> None:
    """Lines of the access log belong to the session of their client, whatever Python reads them."""
    records = [record for record in story.judged()[ACCESS] if record["line"] > after]
    wrong = [record["text"] for record in records if record["session"] != record["text"].split()[0]]
    assert records and wrong == []


def every_line_once(story: Story) -> None:
    """All that was sent is judged, in the order of its sender, and nothing else."""
    story.applied()
    judged = story.judged()
    for log, lines in story.sent.items():
        found = [record["text"] for record in judged[log]]
        assert len(found) == len(lines), f"{log}: sent {len(lines)} lines, judged {len(found)}"
        assert found == lines, f"{log}: in another order"


def healthy(story: Story) -> None:
    code, health = story.machine.answer("/health")
    assert (code, health["status"]) == (200, "serving"), health


def answers(story: Story) -> list[dict[str, Any]]:
    """What would be said of a hundred lines, with what each member says; without the time of the question."""
    body = {"log_lines": story.lines(ACCESS)[-COMPARED_LINES:]}
    results = answer_of(story, "/detect/batch", body)["results"]
    return [{name: value for name, value in each.items() if name != "timestamp"} for each in results]


def attacked(story: Story) -> str:
    """The alert about an attack that comes now."""
    story.type(f"echo '{ATTACK}' | nc -NU {SOCKET}", user=SENDER)
    story.note(MESSAGES, [ATTACK])
    story.applied()
    return str(answer_of(story, "/anomalies?limit=1")["anomalies"][0]["id"])


def answer_of(story: Story, path: str, body: Any = None) -> Any:
    code, answer = story.machine.answer(path, body=body)
    assert code == 200, answer
    return answer


# --- the story --------------------------------------------------------------------------------------


def test_one_command_installs_it_and_it_runs(story: Story) -> None:
    story.follow("sudo ./install.sh", whole=True)
    healthy(story)
    assert story.machine.shows("NRestarts") == "0"
    assert story.machine.run("systemctl", "is-enabled", "vigild.socket", "vigild.service") == "enabled\nenabled"
    assert story.machine.run("systemctl", "list-units", "--failed", "--no-legend", "vigild*") == ""


def test_the_units_as_installed_are_locked_in(story: Story) -> None:
    said = story.follow("systemd-analyze security vigild")
    exposure = re.search(r"Overall exposure level for vigild.service: (\d+\.\d)", said)
    assert exposure is not None and float(exposure[1]) <= 1.5, said


def test_settings_take_effect_at_a_reload_of_the_same_process(story: Story) -> None:
    before = story.machine.shows("MainPID")
    story.settings(SETTINGS.format(warmup=WARMUP_LINES, retrain=10**6))
    story.follow("systemctl reload vigild")
    story.machine.wait(lambda: bool(story.machine.status()["warmup_target"] == WARMUP_LINES))
    assert story.machine.shows("MainPID") == before


def test_a_member_of_vigild_log_sends_lines_and_may_do_no_more(story: Story) -> None:
    refused = story.attempt(f"nc -NU {SOCKET} < {MESSAGES}", user=STRANGER)
    assert refused.returncode and b"Permission denied" in refused.stderr, refused
    refused = story.attempt("curl --silent --request POST http://localhost:8765/flush", user=STRANGER)
    assert b"token_needed" in refused.stdout, refused
    refused = story.attempt("cat /run/vigild/page.token", user=STRANGER)
    assert refused.returncode and b"Permission denied" in refused.stderr, refused
    story.follow("usermod --append --groups vigild-log")
    story.follow("usermod --append --groups vigild ")
    assert story.machine.run("id", "--name", "--groups", SENDER).split() == [SENDER, "vigild-log"]
    asked = story.attempt("curl --unix-socket /run/vigild/admin.sock http://localhost/status", user=SENDER)
    assert asked.returncode, asked
    for (log, lines), client in zip(FIRST_LINES.items(), ("nc -NU ", "socat -u - UNIX-CONNECT:"), strict=True):
        story.type(f"head -n {lines} {log} | {client}{SOCKET}", user=SENDER)
        story.note(log, story.lines(log)[:lines])
    every_line_once(story)


def test_lines_are_read_as_what_they_are(story: Story) -> None:
    clients_are_read(story)


def test_it_trains_to_the_ensemble_under_load_and_kills_and_no_line_is_lost_or_counted_twice(story: Story) -> None:
    machine = story.machine
    sendings = [Sending(story, log, rate) for log, rate in RATES.items()]
    machine.wait(lambda: machine.stored() == len(sendings))
    for _ in range(2):
        machine.wait(lambda: in_the_midst(machine.status()["training"]), TRAINING_SECONDS)
        kill(story)
    machine.wait(lambda: machine.status()["phase"] == "ensemble", TRAINING_SECONDS)
    for _ in range(2):
        kill(story)
    every_member_judges(story)
    # Now a second training, and a kill in it.
    first = tried(machine.status()["training"])
    story.settings(SETTINGS.format(warmup=WARMUP_LINES, retrain=WARMUP_LINES))
    machine.run("systemctl", "reload", "vigild")
    machine.wait(lambda: in_the_midst(machine.status()["training"]), TRAINING_SECONDS)
    kill(story)
    # The one that goes on is to be the last.
    machine.wait(lambda: in_the_midst(machine.status()["training"]), TRAINING_SECONDS)
    story.settings(SETTINGS.format(warmup=WARMUP_LINES, retrain=10**6))
    machine.run("systemctl", "reload", "vigild")
    machine.wait(lambda: tried(machine.status()["training"]) > first, TRAINING_SECONDS)
    for sending in sendings:
        sending.finish()
    every_line_once(story)
    every_member_judges(story)
    assert machine.status()["lost_lines"] == 0
    healthy(story)


def in_the_midst(training: dict[str, Any]) -> bool:
    """Whether the transformer is being trained, which takes most of a training of all members."""
    return bool(training["in_progress"] and training["stage"] == "transformer" and training["percent"] > 1.0)


def kill(story: Story) -> None:
    """SIGKILL for the daemon; returns when the next one serves."""
    before = story.machine.shows("MainPID")
    os.kill(story.machine.main_process(), signal.SIGKILL)
    story.machine.wait(lambda: story.machine.serving(after=before), START_SECONDS)


def tried(training: dict[str, Any]) -> int:
    """How many models were trained: the last is in force, or was no better than the one that is, and refused."""
    return int(training["generation_in_force"] + training["refused"])


def test_after_a_restart_it_says_the_same_to_the_bit(story: Story) -> None:
    machine = story.machine
    machine.wait(lambda: not machine.status()["training_in_progress"], TRAINING_SECONDS)
    before, known = answers(story), machine.status()["logs_processed"]
    process = machine.shows("MainPID")
    story.type("systemctl restart vigild")
    assert machine.serving(after=process)
    assert machine.status()["recovery"]["tier"] == "full" and machine.status()["logs_processed"] == known
    assert answers(story) == before and len(before) == COMPARED_LINES
    every_member_judges(story)


def test_an_instance_is_enabled_and_judges_lines_of_its_own(story: Story) -> None:
    machine, socket = story.machine, "/run/vigild/web/log.sock"
    story.follow("enable --now vigild@web")
    assert machine.run("systemctl", "is-enabled", "vigild@web.socket", "vigild@web.service") == "enabled\nenabled"
    story.type(f"head -n 100 {ACCESS} | nc -NU {socket}", user=SENDER)
    machine.wait(lambda: bool(machine.status("web")["logs_processed"] == 100))
    assert machine.status("web")["ingest"]["exactly_once"] is True
    assert (machine.root / STATE / "web").is_dir()


def test_the_doctor_finds_nothing(story: Story) -> None:
    story.follow("vigilctl doctor")
    found = json.loads(story.type("sudo vigilctl doctor --json"))
    assert [check for check in found if check["status"] != "ok"] == []


def test_files_are_rotated_and_no_record_is_lost(story: Story) -> None:
    before = len(story.verdicts())
    story.type(f"mv /{STATE}/verdicts.jsonl /{STATE}/verdicts.jsonl.1")
    assert (story.machine.root / STATE / "verdicts.jsonl.1").exists()
    story.type(f"tail -n 300 {ACCESS} | nc -NU {SOCKET}", user=SENDER)
    story.note(ACCESS, story.lines(ACCESS)[-300:])
    every_line_once(story)
    assert len(story.verdicts()) == before + 300


# --- the controls: what the story is there to notice is put back ------------------------------------


def test_control_with_memory_that_may_not_be_written_and_executed_it_says_so_and_loses_nothing(story: Story) -> None:
    machine = story.machine
    every_member_judges(story)
    sending = Sending(story, ACCESS, RATES[ACCESS])
    machine.wait(lambda: machine.stored() == 1)
    drop_in(story, "MemoryDenyWriteExecute=yes")
    story.type("systemctl restart vigild")
    machine.wait(lambda: bool(machine.answer("/health")[1]["status"] == "degraded"))
    code, health = machine.answer("/health")
    assert code == 200 and "transformer" in json.dumps(health), health
    with pytest.raises(AssertionError):
        every_member_judges(story)
    with pytest.raises(AssertionError):
        healthy(story)
    sending.finish()
    every_line_once(story)
    assert machine.status()["lost_lines"] == 0
    drop_in(story, "")
    story.type("systemctl restart vigild")
    every_member_judges(story)
    healthy(story)


def test_control_with_possessive_groups_the_clients_of_lines_are_not_read(story: Story) -> None:
    module = next((story.machine.root / "opt/vigild").glob("**/detection/formats/access.py"))
    mended = module.read_text()
    assert ATOMIC in mended
    for text, readable in ((mended.replace(ATOMIC, POSSESSIVE), False), (mended, True)):
        module.write_text(text)
        story.type("systemctl restart vigild")
        before = len(story.verdicts())
        story.type(f"head -n 100 {ACCESS} | nc -NU {SOCKET}", user=SENDER)
        story.note(ACCESS, story.lines(ACCESS)[:100])
        story.applied()
        if readable:
            clients_are_read(story, after=before)
        else:
            with pytest.raises(AssertionError):
                clients_are_read(story, after=before)


def drop_in(story: Story, setting: str) -> None:
    """Have the service run with `setting`; with the unit as it is when that is empty."""
    place = story.machine.root / DROP_INS[1:]
    if setting:
        place.mkdir(parents=True, exist_ok=True)
        (place / "memory.conf").write_text(f"[Service]\n{setting}\n")
    else:
        shutil.rmtree(place)
    story.type("systemctl daemon-reload")


# --- the documents, and the end ----------------------------------------------------------------------


def test_every_command_of_the_documents_does_what_it_says(story: Story) -> None:
    alert = attacked(story)
    given = [command for page in PAGES for command in documented(page)]
    for command in given:
        if command.text in EXCEPTIONS:
            continue
        text = command.text
        for words, own in _OWN.items():
            text = re.sub(words, own.format(alert=alert), text)
        if text.startswith("["):
            story.settings(f"{text}\n")
        elif ENDLESS.search(text):
            before = story.machine.status()["logs_processed"]
            done = story.attempt(text, limit=3)
            assert done.returncode == TIMED_OUT, (str(command), done)
            fed = story.machine.status()["logs_processed"] - before
            assert fed or not FEEDS.search(text), f"{command}: no line of it arrived"
        else:
            said = story.type(text)
            assert not said.startswith('{"error"'), (str(command), said)
        if text in _UNDONE:
            story.type(_UNDONE[text])
    healthy(story)
    texts = {command.text for command in given}
    assert [text for text in EXCEPTIONS if text not in texts] == [], "exceptions that no document needs any more"


def test_nothing_but_what_it_names_is_left_when_it_is_removed(story: Story) -> None:
    said = story.follow("./install.sh --uninstall")
    named = re.findall(r"^  (/\S+) ", said, re.MULTILINE)
    assert {"/var/lib/vigild", "/etc/vigild"} <= set(named) <= {"/var/lib/vigild", "/etc/vigild", DROP_INS}, said
    left = story.files() - set(story.before)
    assert [path for path in left if not path.startswith(tuple(named))] == []
    assert set(story.before) - story.files() == set()
    assert (story.machine.root / STATE / "verdicts.jsonl").exists()
    assert story.machine.run("systemctl", "list-units", "--all", "--no-legend", "vigild*") == ""
    # As it says itself, for who wants to keep nothing.
    for command in re.findall(r"^    ((?:rm|userdel) .*)$", said, re.MULTILINE):
        story.type(command)
    assert story.files() == set(story.before)


# --- an upgrade -------------------------------------------------------------------------------------


def test_the_release_before_is_upgraded_in_place_and_everything_comes_along(story: Story, tmp_path: Path) -> None:
    machine = story.machine
    story.sent = {ACCESS: [], MESSAGES: []}
    released = before_this(tmp_path)
    if released is None:
        golden(story)
        story.follow("make install")
        recovery = machine.status()["recovery"]
        assert (recovery["tier"], recovery["lost_lines"], machine.status()["lost_lines"]) == ("full", 0, 0)
        assert machine.status()["logs_processed"] == GOLDEN_LINES
        return
    install_by_hand(story, released)
    story.type(f"head -n {WARMUP_LINES} {ACCESS} | nc -NU {SOCKET}", user=SENDER)
    story.note(ACCESS, story.lines(ACCESS)[:WARMUP_LINES])
    machine.wait(lambda: machine.status()["phase"] == "ensemble", TRAINING_SECONDS)
    alert = attacked(story)
    story.type(f"vigilctl feedback {alert} normal")
    old, alerts = machine.status(), (machine.root / STATE / "alerts.jsonl").read_bytes()

    sending = Sending(story, ACCESS, RATES[ACCESS])
    machine.wait(lambda: machine.stored() == 1)
    story.check_out(PROJECT)
    story.follow("make install")
    sending.finish()
    every_line_once(story)
    drop_in(story, "")
    new = machine.status()
    assert (new["recovery"]["tier"], new["recovery"]["lost_lines"], new["lost_lines"]) == ("full", 0, 0)
    assert new["alarms"]["answers"] == old["alarms"]["answers"] == 1
    assert new["alarms"]["incidents"]["opened"] >= old["alarms"]["incidents"]["opened"] > 0
    assert new["templates"]["created"] >= old["templates"]["created"]
    assert (machine.root / STATE / "alerts.jsonl").read_bytes().startswith(alerts)
    # The model comes along, or is trained again of what came along.
    machine.wait(lambda: machine.status()["phase"] == "ensemble", TRAINING_SECONDS)
    healthy(story)


def before_this(directory: Path) -> Path | None:
    """The release before, out of the repository's history; None where that does not reach so far back."""
    archive = directory / "release.tar"
    command = ["git", "-C", str(PROJECT), "archive", "--output", str(archive), RELEASE_BEFORE]
    if subprocess.run(command, capture_output=True).returncode:
        return None
    place = directory / "release"
    with tarfile.open(archive) as opened:
        opened.extractall(place, filter="data")
    return place


def install_by_hand(story: Story, released: Path) -> None:
    """As the documents of that release say, and what they did not say: two mends that an operator had to find."""
    story.check_out(released)
    story.type("mkdir -p /etc/sysusers.d")
    drop_in(story, "MemoryDenyWriteExecute=no")
    story.settings(SETTINGS.format(warmup=WARMUP_LINES, retrain=10**6))
    page = "docs/systemd.md"
    for command in itertools.takewhile(
        lambda command: "status" not in command.text, commands(page, (released / page).read_text())
    ):
        story.type(command.text, user="root", place=CHECKOUT)
    story.type(f"usermod --append --groups vigild-log {SENDER}")
    story.type(f"usermod --append --groups vigild {ADMIN}")


def golden(story: Story) -> None:
    """A state directory of the release before, as a kill left it."""
    story.type(f"systemd-sysusers {CHECKOUT}/systemd/vigild.sysusers")
    with tarfile.open(PROJECT / "tests/golden/state-1.tar.xz") as archive:
        archive.extractall(story.machine.root / STATE, filter="data")
    story.type(f"chmod 700 /{STATE} && chown --recursive vigild: /{STATE}")
