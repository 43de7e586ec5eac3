"""`check` on two real runs of suites/quick.yaml on a noisy 2-core machine: no alarm, and every doubled time is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.store.run import Run, open_run
from harness.verdict import Verdict, check, make_baseline

STUDIES = Path(__file__).parents[2] / "results" / "studies"
BEFORE, AFTER = open_run(STUDIES / "quick"), open_run(STUDIES / "quick-again")
ROUNDS, RECORDS = AFTER.rounds(), AFTER.records()


class Slowed(Run):
    """The later run with one cell's training and train-form times multiplied: what a slower block would have given."""

    def __init__(self, cell: str, factor: float) -> None:
        super().__init__(AFTER.path, AFTER.meta)
        self.cell, self.factor = cell, factor

    def rounds(self):
        rounds = ROUNDS.copy()
        times = (rounds["cell"] == self.cell) & (rounds["unit"] == "s") & (rounds["form"] == "train")
        rounds.loc[times, "value"] *= self.factor
        return rounds

    def records(self):
        return RECORDS


@pytest.fixture(scope="module")
def baseline():
    return make_baseline(BEFORE)


def test_the_same_code_again_raises_no_alarm(baseline):
    result = check(AFTER, baseline)
    assert result.exit_code == 0
    assert result.counts[Verdict.REGRESSED] == result.counts[Verdict.IMPROVED] == 0
    assert result.counts[Verdict.SAME] > 150


@pytest.mark.parametrize("cell", list(AFTER.cells.index), ids=lambda id_: AFTER.cells.at[id_, "block"])
def test_a_block_that_takes_twice_as_long_is_found_and_no_other_is_blamed(baseline, cell):
    result = check(Slowed(cell, 2.0), baseline)
    assert result.exit_code == 1
    assert {row.cell for row in result.rows if row.verdict is Verdict.REGRESSED} == {cell}
