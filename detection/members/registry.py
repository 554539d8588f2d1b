"""All members. To add one of either kind, write its file and add its line here. Its columns need a layout and a step
(`columns.layout_upgrades`); the rest of the code follows from the attributes of its class.

Members score in the order of `MEMBERS`, and may use the scores of those before them: first the early fitted members,
then the online ones, then the fitted ones that need the whole warm-up. It is also the order of columns in states.
"""

from typing import Any

from detection.members.counts import Counts
from detection.members.isolation_forest.member import IsolationForest
from detection.members.member_interfaces import FittedMember, Member, OnlineMember
from detection.members.ngram import Ngram
from detection.members.origins.member import Origins
from detection.members.parameter_values.member import ParameterValues
from detection.members.transformer.member import Transformer

FITTED: tuple[type[FittedMember], ...] = (
    Ngram,
    Counts,
    Transformer,
    IsolationForest,
)
ONLINE: tuple[type[OnlineMember[Any]], ...] = (
    ParameterValues,
    Origins,
)

MEMBERS: tuple[type[Member], ...] = (
    *(member for member in FITTED if member.early),
    *ONLINE,
    *(member for member in FITTED if not member.early),
)
NAMES = tuple(member.name for member in MEMBERS)
ONLINE_NAMES = tuple(member.name for member in ONLINE)  # the columns of online scores
OFTEN_SILENT = frozenset(member.name for member in MEMBERS if member.often_silent)
IN_NATS = frozenset(member.name for member in MEMBERS if member.in_nats)
LOOKS_AT = {member.name: member.looks_at for member in FITTED if member.looks_at}
