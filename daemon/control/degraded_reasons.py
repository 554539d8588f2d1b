"""What has failed while the daemon runs on, as a list of reasons.

One list for every view of the daemon: `GET /health` and `/status`, the page, `vigilctl status`, the service
manager's status line and the metrics. A reason is there for as long as its cause is.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from detection.summary import Summary

CODES = {
    "journal": "lines cannot be journaled: sources wait, and the daemon does not serve",
    "training": "the last training failed",
    "withdrawn": "a member of the model failed and does not judge",
    "unfitted": "the model in force was trained without a member, which could not be fitted",
    "checkpoint": "the last checkpoint failed",
    "alerts": "a file of records cannot be written",
    "disk": "the disk of the state directory is almost full, and records give way to the journal",
    "limits": "all connections are taken, and others wait",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """`code` is one of CODES, `text` a sentence for people without its full stop."""

    code: str
    text: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def degraded_reasons(
    *,
    journal: str | None = None,
    training: str | None = None,
    trainings_failed: int = 0,
    summary: Summary | None = None,
    checkpoint: str | None = None,
    outlets: Mapping[str, Mapping[str, Any]] | None = None,
    disk: str | None = None,
    waiting: str | None = None,
) -> list[Reason]:
    """Why the daemon is degraded, the gravest first; empty when all is well.

    `journal`, `training` and `checkpoint` are the errors of the last try, None when it succeeded; `trainings_failed`
    is how many in a row have not. `summary` says which members do not judge, and why. `outlets` are the files of
    records by name, as `actors.alerts.Outlet.status` gives them. `disk` says how full it is, and `waiting` why
    connections have to wait: None when that is well.
    """
    found = []
    if journal is not None:
        found.append(Reason("journal", f"lines wait: {journal}"))
    for name, outlet in (outlets or {}).items():
        if outlet["error"] is not None:
            lost = f", {outlet['lost']:,} are lost" if outlet["lost"] else ""
            text = f"{name} cannot be written: {outlet['error']}; {outlet['pending']:,} records wait in memory{lost}"
            found.append(Reason("alerts", text))
    if disk is not None:
        found.append(Reason("disk", disk))
    if checkpoint is not None:
        found.append(Reason("checkpoint", f"checkpoint failed: {checkpoint}"))
    if summary is not None and summary.withdrawn:
        members = "; ".join(
            f"{one.member} does not judge since frame {one.seq:,}: {one.reason}" for one in summary.withdrawn
        )
        found.append(Reason("withdrawn", members))
    if summary is not None and summary.unfitted:
        members = "; ".join(f"the model was trained without {name}: {why}" for name, why in summary.unfitted)
        found.append(Reason("unfitted", members))
    if training is not None:
        times = f" {trainings_failed:,} times in a row" if trainings_failed > 1 else ""
        found.append(Reason("training", f"training failed{times}: {training}"))
    if waiting is not None:
        found.append(Reason("limits", waiting))
    return found
