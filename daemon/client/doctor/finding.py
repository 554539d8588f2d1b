"""The result of one check."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]
AS_ROOT = "sudo vigilctl doctor"


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` names what was checked, `found` describes the result, `do` says what to do about it (None with "ok").

    "fail": something that vigild promises does not hold now. "warn": it may soon not hold, or could not be checked.
    """

    check: str
    status: Status
    found: str
    do: str | None = None


def ok_finding(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warn_finding(check: str, found: str, do: str) -> Finding:
    return Finding(check, "warn", found, do)


def fail_finding(check: str, found: str, do: str) -> Finding:
    return Finding(check, "fail", found, do)


def unchecked_finding(check: str, why: str) -> Finding:
    """Only root can check this."""
    return warn_finding(check, f"not checked: {why}", AS_ROOT)
