"""From verdicts to alerts: flagged rows are put into incidents, and the first ones of each are explained."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from detection.causes.fingerprints import RULE, cause_in_words, source_causes
from detection.members.all_online_members import OnlineMembers, Read
from detection.members.parsed_lines import ParsedLines
from detection.rules.rule_matching import RuleSet
from detection.scoring.batch import Judged
from detection.scoring.ensemble import Ensemble
from detection.sessions.recent_lines import RecentLines
from detection.templates.table import TemplateTable
from detection.verdicts.explanation import LINES_SHOWN, evidence_shown, explain_by_members, explanation_in_order
from detection.verdicts.incidents import Incidents
from detection.verdicts.verdict_records import Alerted, VerdictRows, shown_key, shown_session, shown_text

# An incident's first alerts are explained, but only so many of one batch, those first that open an incident: the cost
# of a flood must not grow with its length.
EXPLAINED_OF_AN_INCIDENT = 5
EXPLAINED_OF_A_BATCH = 16


@dataclass(frozen=True, slots=True)
class LinesOfBatch:
    """The lines of a batch: those of `parsed` from its line number `start` on, and what online members read of them."""

    parsed: ParsedLines
    start: int
    read: Read


class Alerting:
    """Collects the batches of one frame. `online` are the members that judge."""

    def __init__(
        self,
        incidents: Incidents,
        recent: RecentLines,
        templates: TemplateTable,
        ensemble: Ensemble | None,
        rules: RuleSet,
        online: OnlineMembers,
        per_day: float,
    ) -> None:
        self.batches: list[tuple[VerdictRows, Alerted]] = []
        self.flagged = 0
        self._incidents, self._recent, self._templates = incidents, recent, templates
        self._ensemble, self._rules, self._online, self._per_day = ensemble, rules, online, per_day

    def add(self, rows: VerdictRows, judged: Judged, alpha: float, lines: LinesOfBatch | None) -> None:
        """Put the flagged `rows` into incidents, in the order of ids, and explain some of them.

        `lines` is None if there are only closings.
        """
        order = rows.in_order()
        order = order[rows.flagged[order]]
        self.flagged += len(order)
        what = [self._cause_of_alert_in_words(rows, row, lines) for row in order.tolist()]
        sources = source_causes(rows.session[order])
        # A window of a stream without keys belongs to no client, so only the cause groups its alerts.
        sources[np.char.startswith(rows.session[order], b"w")] = 0
        kinds = rows.kind[order]
        times, of_lines = rows.time.copy(), slice(len(judged.row_of_line))
        # One line from the future must not end the day that the budget is for, and every one after it.
        times[of_lines] = np.fmin(times[of_lines], judged.view.times[judged.row_of_line])
        grouped = self._incidents.assign(
            rows.cause[order],
            sources,
            kinds,
            kinds == RULE,
            times[order],
            rows.line[order],
            rows.k[order],
            about=rows.about[order],
            shapes=rows.shapes[order],
            verdicts=rows.verdict[order],
            per_day=self._per_day,
            what=what.__getitem__,
        )
        early = np.flatnonzero(grouped.count <= EXPLAINED_OF_AN_INCIDENT)
        early = early[np.argsort(grouped.count[early], kind="stable")][:EXPLAINED_OF_A_BATCH]
        reasons = {int(row): self._explain_alert(rows, judged, int(row), alpha, lines) for row in order[early]}
        self.batches.append((rows, Alerted(order, grouped, what, reasons)))

    def counting_records(self, line: int, k: int, now: float, *, everything: bool) -> tuple[dict[str, Any], ...]:
        """The counting records of the frame, to be taken at its end. Their ids follow those of all its alerts:
        `<line>.<k>.<n>`, `n` being the number of the record since the state began. See `Incidents.take_counts`."""
        counted = self._incidents.take_counts(now, everything=everything)
        generation = self._ensemble.generation if self._ensemble is not None else 0
        before = self._incidents.counts - len(counted)
        return tuple(one.record(f"{line}.{k}.{before + n}", generation) for n, one in enumerate(counted, 1))

    def _cause_of_alert_in_words(self, rows: VerdictRows, row: int, lines: LinesOfBatch | None) -> str:
        kind, key = int(rows.kind[row]), bytes(rows.session[row])
        return cause_in_words(
            kind,
            template=rows.templates.get(int(rows.about[row]), ""),
            rule=rows.matched(row)[0].name if kind == RULE else "",
            source=shown_text(_client_of_row(rows, row, lines)) or shown_key(key),
            session=shown_session(key),
        )

    def _explain_alert(
        self, rows: VerdictRows, judged: Judged, row: int, alpha: float, lines: LinesOfBatch | None
    ) -> dict[str, Any]:
        count = len(judged.row_of_line)
        closing = row >= count
        serial = int(judged.closings.serial[row - count] if closing else judged.states.serial[row])
        view_row = judged.row_of_serial.get(serial) if closing else int(judged.row_of_line[row])
        odd = int(judged.closings.worst_line[row - count] if closing else rows.line[row])
        through = int(rows.last_line[row])
        reasons: dict[str, Any] = {}
        if self._ensemble is not None and view_row is not None:
            reasons = explain_by_members(
                self._ensemble, judged.view, judged.standing, judged.judgement, view_row, alpha, self._templates.text
            )
        number = 0
        read: Read = {}
        if lines is not None and not closing:
            number, read = lines.start + row, lines.read
            target, agent = lines.parsed.matched_in[number]
            reasons["rules"] = [
                evidence_shown(self._rules.evidence(rule, target, agent, rows.texts[row])) for rule in rows.hit_by(row)
            ]
        # As of the client's last line: counters are those after the batch by now, which may go on for hours without it.
        reasons |= self._online.explain(read, number, _client_of_row(rows, row, lines))
        reasons["lines"] = [
            {"line": number, "text": shown_text(self._recent.text(number) or b""), "odd": number == odd}
            for number in self._recent.of_session(serial, through, LINES_SHOWN)
        ]
        return explanation_in_order(reasons)


def _client_of_row(rows: VerdictRows, row: int, lines: LinesOfBatch | None) -> bytes:
    """The client of a row: the one that its line names, b"" for none. For a closing it is the key of its session, which
    is the client where sessions go by clients."""
    if lines is None or rows.k[row]:
        return bytes(rows.session[row])[1:]
    return lines.parsed.origins[lines.start + row]
