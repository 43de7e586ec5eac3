"""What a trend finds: changes of single readings between two runs, and all of them together."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from harness.verdict.rules import Verdict
from harness.verdict.trend.history import History, PastRun


@dataclass(frozen=True)
class Change:
    """One reading's change between two runs next to each other in its series.

    `before` and `after` are places in the history's runs. `level_before` and `level_after` are ratios to the cell
    `reference` (`unit` "x") or in `unit`; for sampled readings over all runs up to the next change, and `ratio` is
    after / before with its 99 % interval (the place taken as given) and `p`. `accepted` is the reason of an annotation.
    Only a `gated` one can fail.
    """

    cell: str
    label: str
    metric: str
    form: str
    kind: str
    before: int
    after: int
    verdict: Verdict
    gated: bool
    unit: str
    reference: str
    level_before: float
    level_after: float
    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    reason: str = ""
    accepted: str = ""
    command: str = ""

    @property
    def fails(self) -> bool:
        return self.gated and self.verdict is Verdict.REGRESSED and not self.accepted


@dataclass(frozen=True)
class Trend:
    """All changes in a folder of runs, the newest first; `judged` counts the series with enough runs."""

    folder: str
    history: History
    changes: tuple[Change, ...]
    judged: int
    notes: tuple[str, ...]

    @property
    def runs(self) -> tuple[PastRun, ...]:
        return self.history.runs

    @property
    def counts(self) -> Counter[Verdict]:
        return Counter(change.verdict for change in self.changes)

    @property
    def exit_code(self) -> int:
        """1 when something got worse and nobody has accepted it, 5 when no reading has enough runs, else 0."""
        if any(change.fails for change in self.changes):
            return 1
        return 0 if self.judged else 5
