"""Checks of the daemon's own status: does it serve, count lines exactly once, train, and save."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from daemon.client.doctor.finding import Finding, fail_finding, ok_finding, unchecked_finding, warn_finding
from daemon.client.doctor.target_daemon import Target, status_part
from daemon.client.text.formatting import count_text, duration_text, member_name, printable
from daemon.settings_file import CheckpointSettings, SettingsError

# Reasons of a degraded daemon that have a check of their own, and its name; and the one that ends by itself.
_OWN_LINE = {"training": "training", "withdrawn": "detectors", "unfitted": "detectors", "checkpoint": "checkpoint"}
_MILD = "limits"
_LATE = 3  # times the settings' seconds or lines; slow periodic saves are put off


def check_daemon(target: Target) -> Iterator[Finding]:
    if target.unreachable is not None:
        if "permission denied" in target.unreachable and not target.root:
            yield unchecked_finding("daemon", target.unreachable)
        else:
            unit = target.service.name if target.service is not None else None
            do = f"systemctl start {unit}; journalctl --unit {unit} --lines 50" if unit else "start it: vigild &"
            yield fail_finding("daemon", target.unreachable, do)
        return
    condition, reason = str(target.health.get("status")), target.health.get("reason")
    reasons = [each for each in target.health.get("reasons") or () if isinstance(each, Mapping)]
    found = (
        f"{condition}, process {target.pid or '?'}, up {duration_text(float(target.status.get('uptime_seconds') or 0))}"
    )
    log = _where_the_log_is(target)
    if condition in ("starting", "stopping"):
        yield warn_finding("daemon", f"{found}: {printable(reason or condition)}", "wait a moment and ask again")
    elif condition != "serving" and not reasons:
        yield fail_finding("daemon", f"{found}: {printable(reason)}", log)
    elif condition == "serving" and not reasons:
        yield ok_finding("daemon", found)
    for each in reasons:
        code, text = str(each.get("code")), f"{found}: {printable(each.get('text'))}"
        if code in _OWN_LINE:
            yield warn_finding("daemon", text, f"see '{_OWN_LINE[code]}' below")
        else:
            yield warn_finding("daemon", text, log) if code == _MILD else fail_finding("daemon", text, log)


def check_exactly_once(target: Target) -> Iterator[Finding]:
    ingest = status_part(target.status, "ingest")
    if "exactly_once" not in ingest:
        return
    reason = printable(ingest.get("exactly_once_reason") or "no reason is given")
    if ingest["exactly_once"]:
        yield ok_finding("exactly once", "in force: the socket is systemd's, connections outlive the daemon")
    elif target.service is None:
        yield ok_finding(
            "exactly once",
            f"not over a kill: {reason}; confirmed lines count once, the sender of others sees a reset",
        )
    else:
        yield fail_finding(
            "exactly once",
            f"not in force: {reason}",
            f"compare the units with those of this release (docs/systemd.md); systemctl cat {target.service.name}",
        )


def check_training(target: Target) -> Iterator[Finding]:
    status, training = target.status, status_part(target.status, "training")
    if not training:
        return
    if error := training.get("error"):
        text = (
            f"{count_text(training.get('failures') or training.get('attempts'))} trainings failed: {printable(error)}"
        )
        yield fail_finding("training", text, _training_failure_advice(error) or _where_the_log_is(target))
    elif status.get("training_in_progress"):
        percent = training.get("percent")
        yield ok_finding("training", "under way" + (f", {percent:.0f} %" if isinstance(percent, (int, float)) else ""))
    elif training.get("generation_in_force"):
        kept = f"; the last one was refused: {printable(training['refusal'])}" if training.get("refusal") else ""
        yield ok_finding("training", f"model generation {training['generation_in_force']} is in force{kept}")
    else:
        lines = f"{count_text(status.get('logs_processed'))} of {count_text(status.get('warmup_target'))} lines"
        yield ok_finding("training", f"none yet: {lines} of the warm-up")


def _training_failure_advice(error: object) -> str | None:
    """What to do about the one failure whose cause is known."""
    jit = "could not create a primitive" in str(error)
    return "MemoryDenyWriteExecute must be off, see the unit's line above" if jit else None


def check_detectors(target: Target) -> Iterator[Finding]:
    active = status_part(target.status, "active_models")
    if not active:
        return
    withdrawn = _withdrawn_members(target.status)
    unfitted = {
        str(name): str(why) for name, why in status_part(status_part(target.status, "training"), "unfitted").items()
    }
    again = "it is tried again at the next start and with the next model"
    for name, why in withdrawn.items():
        yield fail_finding(
            "detectors",
            f"{member_name(name)} withdrawn: {printable(why)}; the others judge",
            f"{_where_the_log_is(target)}; {again}",
        )
    for name, why in unfitted.items():
        text = f"the model was trained without {member_name(name)}: {printable(why)}; the others judge"
        yield fail_finding("detectors", text, f"{_training_failure_advice(why) or _where_the_log_is(target)}; {again}")
    ready = [member_name(name) for name, is_ready in active.items() if is_ready and name not in withdrawn]
    if not withdrawn and not unfitted:
        learning = sum(not is_ready for is_ready in active.values())
        yield ok_finding("detectors", f"{len(ready)} judge" + (f", {learning} still learn" if learning else ""))


def _withdrawn_members(status: Mapping[str, Any]) -> dict[str, str]:
    """The members that were withdrawn because they failed, each with the reason."""
    found = status_part(status, "training").get("withdrawn") or ()
    return {str(one.get("member")): str(one.get("reason")) for one in found if isinstance(one, Mapping)}


def check_checkpoint(target: Target) -> Iterator[Finding]:
    checkpoint = status_part(target.status, "checkpoint")
    if not checkpoint:
        return
    if error := checkpoint.get("error"):
        failures = count_text(checkpoint.get("failures"))
        text = f"{failures} failed: {printable(error)}; the last good one stays, and the journal"
        yield fail_finding("checkpoint", text, f"mend the disk, then: vigilctl checkpoint; {_where_the_log_is(target)}")
        return
    settings = CheckpointSettings() if isinstance(target.settings, SettingsError) else target.settings.checkpoint
    behind = int(target.status.get("logs_processed") or 0) - int(checkpoint.get("last_line") or 0)
    made = checkpoint.get("last_time")
    age = time.time() - made if made is not None else float(target.status.get("uptime_seconds") or 0.0)
    last = f"through line {count_text(checkpoint.get('last_line'))}, " + (
        f"{duration_text(age)} ago" if made else "before this start"
    )
    late = age > _LATE * settings.every_seconds + 60 or behind > _LATE * settings.every_lines + 1000
    if behind > 0 and late:
        yield warn_finding(
            "checkpoint",
            f"{last}: {behind:,} lines would be replayed",
            f"vigilctl checkpoint; {_where_the_log_is(target)}",
        )
    else:
        yield ok_finding("checkpoint", f"{last}, {behind:,} lines since" if made or behind else "none needed yet")


def check_recovery(target: Target) -> Iterator[Finding]:
    recovery = status_part(target.status, "recovery")
    if not recovery:
        return
    aside = [printable(each) for each in recovery.get("set_aside") or ()]
    if lost := recovery.get("lost_lines"):
        yield warn_finding(
            "last start",
            f"{count_text(lost)} lines lost; set aside: {', '.join(aside) or 'nothing'}",
            f"{_where_the_log_is(target)} says why",
        )
    elif aside:
        yield warn_finding(
            "last start",
            f"nothing lost; damaged, set aside: {', '.join(aside)}",
            f"{_where_the_log_is(target)} says why",
        )
    else:
        yield ok_finding("last start", f"{printable(recovery.get('tier'))}, nothing lost")


def _where_the_log_is(target: Target) -> str:
    return f"journalctl --unit {target.service.name} --lines 50" if target.service is not None else "the daemon's log"
