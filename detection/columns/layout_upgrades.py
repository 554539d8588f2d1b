"""The numbered layouts that states and models have had, and the steps that upgrade one to the next.

A layout is the set of columns of each part (`state_columns.layouts_of_parts`). Every released layout has a number in
the column "format". All readers of states and models go through `STATES.upgraded` or `MODELS.upgraded`: older columns
are upgraded step by step; newer ones are refused, and so are columns that do not match their number (they are damaged,
or were written between two releases). A state of any number can be upgraded. A model need not be: a model that cannot
is set aside by `daemon.startup.detector_recovery` and trained again.

To change columns after a release (tests/detection/test_layout.py says what is missing, and the digests):
1. Add `LAYOUTS[n + 1]`: `LAYOUTS[n]` with the changes. A released layout is never edited.
2. Add the step `UPGRADES[n]`. It gets the columns of format n and returns those of n + 1 (except for "format", which
   `upgraded` sets). It is a pure function: no clock, no I/O, no change to an array it was given. It uses nothing of
   today's `Detector`, which will change again. Its docstring says what becomes of every column that changes.
3. Add the digest that the golden states have now to "upgraded" in tests/golden/*.json, and when the layout is
   released its own golden state (tests/golden/make.py).
JSON inside a column (settings, generations) has no number: fields are added with a default and never removed.

UPGRADES
    1 -> 2  members that are withdrawn
    2 -> 3  alerts of an incident that are counted and not recorded in full
MODEL_UPGRADES
    (none yet)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from detection.columns.state_columns import (
    Columns,
    NewerVersionError,
    OtherVersionError,
    State,
    array_column,
    columns_under,
    layout_hash,
    layouts_of_parts,
    of_this_version,
    scalar_column,
)

Step = Callable[[State], State]

# Of `Detector.export`. Not every state has a part "vouching".
LAYOUTS: dict[int, Mapping[str, str]] = {
    1: {
        "detector": "e7431dfa",
        "counters": "466f7ece",
        "schedule": "35d34109",
        "rate": "3e4f91b6",
        "sources": "191e2bd9",
        "clock": "96665cbe",
        "templates": "0ebff859",
        "sessions": "85c65d6c",
        "history": "d5fc97de",
        "recent": "ec7739f4",
        "known": "22917e71",
        "incidents": "b3393ae9",
        "models": "c6b95611",
        "values": "757b9666",
        "origins": "261b90ab",
        "vouching": "48d2286a",
    },
}
LAYOUTS[2] = {**LAYOUTS[1], "withdrawn": "e1ed097f"}

LAYOUTS[3] = {**LAYOUTS[2], "incidents": "d44af521"}


def _with_withdrawn_members(state: State) -> State:
    """The part "withdrawn" is new: no member was ever withdrawn before."""
    return {**state, "withdrawn.entries": np.frombuffer(b"[]", dtype=np.uint8).copy()}


def _with_counted_alerts(state: State) -> State:
    """In the part "incidents" what is counted is new: every alert was recorded in full before, and none is counted."""
    incidents = len(array_column(state, "incidents.line"))
    return {
        **state,
        **{f"incidents.counted_{name}": np.zeros(incidents, dtype=np.int64) for name in ("causes", "number")},
        "incidents.counted_time": np.zeros(incidents),
        **{f"incidents.group_{name}": np.zeros(0, np.uint64) for name in ("cause", "shape", "open_shape")},
        **{f"incidents.group_{name}": np.zeros(0, np.uint8) for name in ("kind", "verdict")},
        "incidents.group_about": np.zeros(0, np.int32),
        "incidents.group_what": np.zeros(0, "S160"),
        "incidents.group_runs": np.zeros(0, np.int64),
        "incidents.runs": np.zeros((0, 4), np.int64),
        "incidents.recorded": scalar_column(state, "counters.flagged", int),
        "incidents.counted": 0,
        "incidents.counts": 0,
    }


UPGRADES: dict[int, Step] = {1: _with_withdrawn_members, 2: _with_counted_alerts}

# Of `model.to_columns`: the arrays of each member and of the anchor, where the model has them ("4f53cda1": no arrays);
# the templates, as in a state; "ensemble", which has calibration scores only; "model": the columns without a prefix.
MODEL_LAYOUTS: dict[int, Mapping[str, str]] = {
    1: {
        "model": "724332c5",
        "ngram": "3fe1e651",
        "counts": "474d629d",
        "values": "4f53cda1",
        "sources": "4f53cda1",
        "transformer": "3a4032ec",
        "isolation_forest": "52a5e96a",
        "anchor": "8e863d9a",
        "ensemble": "4f53cda1",
        "templates": "0ebff859",
    },
}
MODEL_UPGRADES: dict[int, Step] = {}


@dataclass(frozen=True)
class Versions:
    """The numbered layouts of states or of models.

    kind      for messages: "the state" or "the model"
    layouts   the layout of each part, by format number; steps: the step from each format to the next
    parts     a function that returns the layout of each part of some columns
    optional  the parts that may be absent
    """

    kind: str
    layouts: Mapping[int, Mapping[str, str]]
    steps: Mapping[int, Step]
    parts: Callable[[Columns], Mapping[str, str]]
    optional: frozenset[str]

    @property
    def newest(self) -> int:
        """The format that this program writes."""
        return max(self.layouts)

    def upgraded(self, columns: Columns) -> State:
        """`columns` in the newest format. Arrays that no step changes are the same objects, not copies.

        Raises NewerVersionError if a later version of the program wrote them, OtherVersionError if they cannot be
        upgraded.
        """
        number = columns.get("format", 1)  # models of format 1 do not say so
        if not isinstance(number, int):
            raise OtherVersionError(f"{self.kind} has format {number!r}")
        if number > self.newest:
            raise NewerVersionError(f"{self.kind} has format {number}, this program knows formats up to {self.newest}")
        state = dict(columns)
        self._check_layout(state, number)
        for step in range(number, self.newest):
            if step not in self.steps:
                raise OtherVersionError(
                    f"{self.kind} has format {number}, and nothing brings format {step} to {step + 1}"
                )
            with of_this_version():
                state = {**self.steps[step](state), "format": step + 1}
            self._check_layout(state, step + 1)
        return state

    def differing_parts(self, columns: Columns, number: int) -> list[str]:
        """The names of the parts of `columns` that differ from layout `number`."""
        expected, found = self.layouts.get(number, {}), self.parts(columns)
        names = (expected.keys() - self.optional) | found.keys()
        return sorted(name for name in names if expected.get(name) != found.get(name))

    def _check_layout(self, columns: Columns, number: int) -> None:
        if other := self.differing_parts(columns, number):
            known = "that this program keeps" if number == self.newest else f"of format {number}"
            raise OtherVersionError(f"the columns of its {', '.join(other)} are not those {known}")


def model_layouts(columns: Columns) -> dict[str, str]:
    """The layout of each part of a model. A member with calibration scores but no arrays is a part without columns."""
    names = {name for name in columns if "." not in name and name != "format"}
    found = {"model": layout_hash({name: columns[name] for name in names})}
    arrays: dict[str, State] = {name: {} for name in columns_under("rings", columns)}
    for name, value in columns_under("parts", columns).items():
        member, _, column = name.partition("/")
        arrays.setdefault(member, {})[column] = value
    found |= {member: layout_hash(each) for member, each in arrays.items()}
    return {**found, "templates": layout_hash(columns_under("templates", columns))}


STATES = Versions("the state", LAYOUTS, UPGRADES, layouts_of_parts, optional=frozenset({"vouching"}))
MODELS = Versions(
    "the model",
    MODEL_LAYOUTS,
    MODEL_UPGRADES,
    model_layouts,
    optional=frozenset[str]().union(*MODEL_LAYOUTS.values()) - {"model", "templates"},
)
