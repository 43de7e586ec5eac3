"""What a check gives: one row per reading, and the exit code that follows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from harness.verdict.rules import Verdict


@dataclass(frozen=True)
class Row:
    """What became of one reading.

    `before` and `now` are in `unit` (SI). For a sampled reading of a variant they are ratios to its
    `yardstick` (a cell id, `unit` "x"); for all others `yardstick` is empty. `ratio` is now / before with
    its 99 % interval, NaN where there is none. Of a close reading's several values `before` and `now` are the two
    that differ most. Only a `gated` row can fail a check.
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


@dataclass(frozen=True)
class Check:
    """All rows, what changed first. `failed`: cell id to the reason why it gave no reading."""

    run: str
    suite: str
    rows: tuple[Row, ...]
    failed: Mapping[str, str]
    notes: tuple[str, ...] = ()
    strict: bool = False

    @property
    def counts(self) -> Counter[Verdict]:
        return Counter(row.verdict for row in self.rows)

    def fails(self, row: Row) -> bool:
        """Whether this row alone would make the exit code 1 or, with `strict`, 4."""
        undecided = self.strict and row.verdict in (Verdict.INCONCLUSIVE, Verdict.MISSING)
        return row.gated and (row.verdict is Verdict.REGRESSED or undecided)

    @property
    def exit_code(self) -> int:
        """1 regression, 3 failed cells, 5 nothing in common, 4 undecided (strict only), 0: the first that applies."""
        gated = {row.verdict for row in self.rows if row.gated}
        if Verdict.REGRESSED in gated:
            return 1
        if self.failed:
            return 3
        if all(row.verdict in (Verdict.MISSING, Verdict.NEW) for row in self.rows):
            return 5
        if self.strict and gated & {Verdict.INCONCLUSIVE, Verdict.MISSING}:
            return 4
        return 0
