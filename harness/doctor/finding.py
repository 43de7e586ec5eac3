"""What an examination finds, and how numbers are told in it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """Worst first: times are worthless, times are worse than they need be, good to know, as it should be."""

    PROBLEM = "problem"
    WARNING = "warning"
    NOTE = "note"
    OK = "ok"


@dataclass(frozen=True)
class Finding:
    """`what` was found, with its number; `why` it matters for timing; what to `do`, as a command where there is one."""

    severity: Severity
    about: str
    what: str
    why: str = ""
    do: str = ""


def percent(share: float) -> str:
    """To two digits: a noise of 0.43 % and one of 12 % are both told well enough."""
    if abs(share) < 0.00005:
        return "0 %"
    return f"{100 * share:.2g} %" if abs(share) < 0.995 else f"{100 * share:.0f} %"


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
