"""Why a session is flagged: the cause found at the row where its p fell below the level, and the verdict it implies.

The member with the smallest p-value there decides: odd values, or how a client behaves. Otherwise the cause is a
template that the model does not know, in that row or earlier in the session: then the session is *novel* and not an
anomaly, for to a model that does not know a line all that follows it is unusual. Otherwise it is the session's shape
so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detection.causes.fingerprints import (
    NEW,
    SHAPE,
    SOURCE,
    VALUE,
    Causes,
    new_causes,
    shape_causes,
    source_causes,
    value_causes,
)
from detection.causes.known_causes import KnownCauses
from detection.columns.runs import first_true, repeat_per_row
from detection.members.fitted_member_view import CLOSING, COUNT_BUCKETS, Ints, View
from detection.members.registry import MEMBERS
from detection.scoring.ensemble import Ensemble, Judgement
from detection.scoring.verdict_and_score import ANOMALY, NOVEL
from detection.sessions.intake import session_key

# Columns of the members that judge a line's values, and of those that judge its client.
_BY_VALUE, _BY_SOURCE = (
    [column for column, member in enumerate(MEMBERS) if member.cause == cause] for cause in ("value", "source")
)


def muted_templates(known: KnownCauses, ensemble: Ensemble | None, templates: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which of `templates` [n] the model does not know, but have become normal since, by admission or by feedback."""
    result = np.zeros(len(templates), dtype=np.bool_)
    if ensemble is not None and known.any_normal:
        unknown = np.flatnonzero(~ensemble.knows_templates(templates))
        if len(unknown):
            result[unknown] = known.which_are_normal(new_causes(templates[unknown]))
    return result


@dataclass(frozen=True, slots=True)
class RowSessions:
    """Whose the rows of a batch are. Of the pieces' sessions [P] `keys`, `serials`, and whether they are `windowed`; of
    rows [R] `line`, the place of their line in the batch; of its lines [n] `origins`, the client, b"" for none."""

    keys: NDArray[np.bytes_]
    windowed: NDArray[np.bool_]
    serials: Ints
    line: Ints
    origins: Sequence[bytes]

    def origin(self, row: int) -> bytes:
        return self.origins[int(self.line[row])]


class Reasons:
    """Columns [R] of a batch. `kind` is that of the row's cause, 0 where `name_causes` was not called, and `verdict`
    follows from it; `about` int32 is the template that a cause of kind NEW or VALUE is about. `novel` int32 [P] is each
    session's first template that the model does not know, plus 1, after the batch; 0: none.

    Alerts and feedback go by `alert_cause` uint64; `session_cause` is recorded with the session for the next training;
    both are 0 where `name_causes` was not called. They differ only for kind SOURCE at a line that names its client:
    there the session's cause is made of its key, the alert's of the client. Otherwise one client that works on many
    things, each a session, would be as many incidents.

    `shapes` uint64 [R, 2] are, of rows of kind NEW, the causes of the session's shape at that row, for when it goes on
    and for when it ends: one day the template will be known, and the session's cause will be its shape.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        known: KnownCauses,
        view: View,
        judgement: Judgement,
        sessions: RowSessions,
        novel: NDArray[np.int32],
    ) -> None:
        """`novel` [P] is what it was of each session before the batch."""
        rows = len(view)
        self.alert_cause, self.session_cause = np.zeros(rows, dtype=np.uint64), np.zeros(rows, dtype=np.uint64)
        self.kind, self.shapes = np.zeros(rows, dtype=np.uint8), np.zeros((rows, 2), dtype=np.uint64)
        self.verdict = np.zeros(rows, dtype=np.uint8)
        self._known, self._view, self._members = known, view, judgement.members
        self._sessions = sessions
        self._just_admitted: set[int] = set()  # causes admitted in this batch, none of whose sessions was flagged yet
        self._piece = repeat_per_row(view.offsets)
        unknown = (view.templates != CLOSING) & ~ensemble.knows_templates(view.templates)
        self._unknown = unknown & ~view.muted_rows()
        self.about = view.templates.copy()
        first = np.flatnonzero(first_true(self._unknown, view.offsets))
        self._novel_at = np.where(novel > 0, 0, rows)  # the row from which each session is
        self.novel = novel.copy()
        new = first[novel[self._piece[first]] == 0]
        self._novel_at[self._piece[new]] = new
        self.novel[self._piece[new]] = view.templates[new] + 1

    @classmethod
    def none(cls, rows: int, novel: NDArray[np.int32]) -> "Reasons":
        """For a batch in which nothing is flagged; `novel` stays as it was."""
        empty = cls.__new__(cls)
        empty.novel = novel
        empty.alert_cause = empty.session_cause = np.zeros(rows, dtype=np.uint64)
        empty.kind, empty.shapes = np.zeros(rows, dtype=np.uint8), np.zeros((rows, 2), dtype=np.uint64)
        empty.verdict, empty.about = np.zeros(rows, dtype=np.uint8), np.full(rows, CLOSING, dtype=np.int32)
        return empty

    def report_new_templates(self, counts: NDArray[np.uint8], next_serial: int) -> None:
        """Report the sessions that show a template the model does not know, each template once a session.

        `counts` [P, 64] are the sessions' before this batch. A template shares its bucket with others, so a session
        that showed one of those before is passed over: admission may come a little later for it, never sooner.
        """
        rows = np.flatnonzero(self._unknown)
        if not len(rows):
            return
        piece, template = self._piece[rows], self._view.templates[rows]
        fresh = counts[piece, template % COUNT_BUCKETS] == 0
        _, first = np.unique(np.stack([piece[fresh], template[fresh]]), axis=1, return_index=True)
        rows, template = (column[fresh][np.sort(first)] for column in (rows, template))
        self._report_causes(new_causes(template), rows, next_serial)

    def report_finished_shapes(self, pieces: NDArray[np.int64], next_serial: int, alpha: float) -> None:
        """Report the final shapes of these pieces' sessions, which were unusual at some row and are over.

        An open session has another shape at every line; only the final one is the same for all sessions that did the
        same. Sessions whose values or client are unusual, at `alpha` or more than all else, are not reported: an attack
        from many clients has a quite ordinary shape, and must not become normal by it.
        """
        p = self._member_p_values(self._view.offsets[1:][pieces] - 1)
        by_value_or_source = p[:, _BY_VALUE + _BY_SOURCE].min(axis=1) <= np.maximum(p.min(axis=1), alpha)
        pieces = pieces[~by_value_or_source]
        shapes = shape_causes(self._view.counts[pieces], np.ones(len(pieces), dtype=np.bool_))
        self._report_causes(shapes, self._view.offsets[1:][pieces] - 1, next_serial)

    def name_causes(self, rows: Ints) -> None:
        """Find the causes of these rows, at most one a piece."""
        piece, view = self._piece[rows], self._view
        closing = view.templates[rows] == CLOSING
        p = self._member_p_values(rows)
        least = p.min(axis=1)
        by_value, by_source = ((p[:, columns] <= least[:, None]).any(axis=1) for columns in (_BY_VALUE, _BY_SOURCE))
        novel = np.where(rows >= self._novel_at[piece], self.novel[piece], 0)
        about = np.where(self._unknown[rows], view.templates[rows], novel - 1)
        kind = np.select([by_value & ~closing, by_source, about >= 0], [VALUE, SOURCE, NEW], SHAPE)
        self.about[rows] = np.where(kind == NEW, about, view.templates[rows])
        counts = self._counts_at(rows)
        going_on, over = (shape_causes(counts, np.full(len(rows), ended)) for ended in (False, True))
        cause = np.select(
            [kind == VALUE, kind == SOURCE, kind == NEW],
            [
                value_causes(np.maximum(view.templates[rows], 0)),
                source_causes(self._sessions.keys[piece]),
                new_causes(np.maximum(about, 0)),
            ],
            np.where(closing, over, going_on),
        )
        self.alert_cause[rows] = self.session_cause[rows] = cause
        self.kind[rows] = kind
        self.shapes[rows] = np.where((kind == NEW)[:, None], np.stack([going_on, over], axis=1), np.uint64(0))
        self.verdict[rows] = np.where(kind == NEW, NOVEL, ANOMALY)
        named = [row for row in rows[(kind == SOURCE) & ~closing].tolist() if self._sessions.origin(row)]
        if named:
            clients = [session_key(self._sessions.origin(row)) for row in named]
            self.alert_cause[named] = source_causes(np.array(clients))

    def with_normal_causes(self, rows: Ints) -> NDArray[np.bool_]:
        """Which of these rows have a cause that is known to be normal. To be called once for each row: a cause that is
        admitted in this very batch still flags the first of its sessions."""
        normal = self._known.which_are_normal(self.session_cause[rows]) | self._known.which_are_normal(
            self.alert_cause[rows]
        )
        if self._just_admitted:
            for i in self._rows_in_log_order(rows).tolist():
                if (cause := int(self.session_cause[rows[i]])) in self._just_admitted:
                    self._just_admitted.remove(cause)
                    normal[i] = False
        return normal

    def report_shapes(self, rows: Ints, next_serial: int) -> None:
        """Report those of these rows whose cause is the shape of their session."""
        by_shape = rows[self.kind[rows] == SHAPE]
        self._report_causes(self.session_cause[by_shape], by_shape, next_serial)

    def _report_causes(self, causes: Causes, rows: Ints, next_serial: int) -> None:
        """Report `causes` of `rows` to the known causes, in the order of the log: rows are in the order of slots, which
        may differ between two runs over the same log."""
        order = self._rows_in_log_order(rows)
        causes, piece = causes[order], self._piece[rows[order]]
        keys = np.where(self._sessions.windowed[piece], np.uint64(0), source_causes(self._sessions.keys[piece]))
        self._just_admitted |= self._known.note_seen_causes(
            causes, np.full(len(causes), next_serial, dtype=np.int64), keys
        )

    def _rows_in_log_order(self, rows: Ints) -> Ints:
        """Places of `rows` in the order of the log."""
        order: Ints = np.lexsort((self._sessions.serials[self._piece[rows]], self._sessions.line[rows]))
        return order

    def _member_p_values(self, rows: Ints) -> NDArray[np.float64]:
        """The members' p-values at `rows`, 1 of members that are not ready: float64 [n, M]."""
        return np.where(np.isnan(self._members[rows]), 1.0, self._members[rows])

    def _counts_at(self, rows: Ints) -> NDArray[np.uint8]:
        """The sessions' counts as of these rows: the counts after the batch, less what came later in it."""
        view, counts = self._view, self._view.counts[self._piece[rows]].astype(np.int64)
        for i, row in enumerate(rows.tolist()):
            later = view.templates[row + 1 : view.offsets[self._piece[row] + 1]]
            later = later[later != CLOSING]
            if len(later):
                counts[i] -= np.bincount(later % COUNT_BUCKETS, minlength=COUNT_BUCKETS)
        return np.clip(counts, 0, 255).astype(np.uint8)
