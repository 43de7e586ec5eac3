"""What a check gives: one row per reading, and the exit code that follows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from harness.verdict.comparability import Level
from harness.verdict.rules import Verdict


class Exit(IntEnum):
    """How a command ends. In print `REGRESSED` reads "regressed"."""

    PASSED = 0
    REGRESSED = 1
    USAGE_ERROR = 2
    CELLS_FAILED = 3
    UNDECIDED = 4
    NOTHING_COMPARED = 5

    @property
    def words(self) -> str:
        return self.name.lower().replace("_", " ")


STRONGEST_FIRST = (
    Exit.USAGE_ERROR, Exit.REGRESSED, Exit.CELLS_FAILED, Exit.NOTHING_COMPARED, Exit.UNDECIDED, Exit.PASSED,
)  # fmt: skip
"""What is known to be wrong comes before what is not known: a regression stays one where another cell has failed."""


def strongest(codes: Iterable[int]) -> Exit:
    """The one code for several reasons, or commands; PASSED when there is none."""
    given = set(codes)
    return next((code for code in STRONGEST_FIRST if code in given), Exit.PASSED)


@dataclass(frozen=True)
class Row:
    """What became of one reading.

    `before` and `now` are in `unit` (SI). For a sampled reading of a variant they are ratios to its
    `yardstick` (a cell id, `unit` "x"); for all others `yardstick` is empty. `ratio` is now / before with
    its 99 % interval, NaN where there is none. Of a close reading's several values `before` and `now` are the two
    that differ most. Only a `gated` row can fail a check.

    `standing` says whether the two values may be held against each other: COMPARABLE is judged but only advice
    (`gated` is False, whatever the suite says), REFUSED was not judged by its values.
    """

    cell: str
    label: str
    group: str
    metric: str
    form: str
    verdict: Verdict
    gated: bool = True
    kind: str = ""
    unit: str = ""
    yardstick: str = ""
    before: float = math.nan
    now: float = math.nan
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    rounds: int = 0
    reason: str = ""
    command: str = ""
    standing: Level = Level.SAME

    @property
    def compared(self) -> bool:
        """Whether two values were held against each other, whatever came of it."""
        apart = (Verdict.MISSING, Verdict.NEW, Verdict.INCOMPARABLE)
        return self.verdict not in apart and self.standing is not Level.REFUSED

    @property
    def advice(self) -> bool:
        """Judged, but across a change of the machine: shown, and failing nothing."""
        return self.standing is Level.COMPARABLE


@dataclass(frozen=True)
class Check:
    """All rows, what changed first. `failed`: cell id to the reason why it gave no reading.

    `against` names the other side in print, `notes` are sentences about how the two machines differ.
    """

    run: str
    suite: str
    rows: tuple[Row, ...]
    failed: Mapping[str, str]
    notes: tuple[str, ...] = ()
    strict: bool = False
    against: str = "the baseline"

    @property
    def counts(self) -> Counter[Verdict]:
        return Counter(row.verdict for row in self.rows)

    def fails(self, row: Row) -> bool:
        """Whether this row alone would make the exit code 1 or, with `strict`, 4."""
        undecided = self.strict and row.verdict in (Verdict.INCONCLUSIVE, Verdict.MISSING)
        return row.gated and (row.verdict is Verdict.REGRESSED or undecided)

    @property
    def exit_code(self) -> int:
        """The strongest of the reasons that apply; what was not compared never passes."""
        reasons = [Exit.REGRESSED if row.verdict is Verdict.REGRESSED else Exit.UNDECIDED for row in self._failing]
        if self.failed:
            reasons.append(Exit.CELLS_FAILED)
        if self.nothing:
            reasons.append(Exit.NOTHING_COMPARED)
        return int(strongest(reasons))

    @property
    def _failing(self) -> list[Row]:
        return [row for row in self.rows if self.fails(row)]

    @property
    def nothing(self) -> str:
        """Why nothing that a gate watches was compared, in one sentence; empty when something was.

        Where the suite gates nothing at all, any comparison is what was asked for.
        """
        rows = [row for row in self.rows if row.gated or row.advice] or list(self.rows)
        if any(row.compared for row in rows):
            return ""
        found = {row.verdict for row in rows}
        refused = dict.fromkeys(row.reason for row in rows if row.verdict not in (Verdict.MISSING, Verdict.NEW))
        if refused:
            first, *others = refused
            more = f", and {len(others)} more reason{'s' * (len(others) > 1)}" if others else ""
            why = f"no reading that is gated can be held against {self.against} ({first}{more})"
        elif found == {Verdict.NEW}:
            why = f"{self.against} has none of this run's gated readings"
        elif found == {Verdict.MISSING}:
            why = f"this run has none of the readings of {self.against}"
        elif found:
            why = f"this run and {self.against} have no gated reading in common"
        else:
            why = f"neither this run nor {self.against} has a reading"
        return f"nothing was compared: {why}"
