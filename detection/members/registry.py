"""All members, in the order in which they are asked: a member may look at those before it. To add one, add a line."""

from detection.members.counts import Counts
from detection.members.isolation_forest.features import JUDGED
from detection.members.isolation_forest.member import IsolationForest
from detection.members.member import Member
from detection.members.ngram import Ngram
from detection.members.stateful import Sources, Values
from detection.members.transformer.member import Transformer

MEMBERS: tuple[type[Member], ...] = (
    Ngram,
    Counts,
    Values,
    Sources,
    Transformer,
    IsolationForest,
)
OFTEN_SILENT = frozenset(("values",))  # 0 when there is nothing to judge: calibrated among the times they spoke
IN_NATS = frozenset(("sources",))  # their scores are -ln of a probability under what is usual, by themselves
LOOKS_AT = {IsolationForest.name: JUDGED}  # what it was fitted on; without one of those it cannot judge
NAMES = tuple(member.name for member in MEMBERS)
