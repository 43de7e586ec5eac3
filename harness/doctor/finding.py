"""What an examination finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from harness import units

percent = partial(units.percent, least=0.00005)
"""A share in print; less than 0.005 % of a machine is nothing."""


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
