"""After which rounds a group is looked at, and what every look costs."""

from __future__ import annotations

import pytest

from harness.planning.looks import CONFIDENCE, LEAST_ROUNDS, MOST_LOOKS, looks, shared_confidence


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [(5, (4, 5)), (6, (4, 5, 6)), (7, (4, 5, 6, 7)), (8, (4, 5, 7, 8)), (10, (4, 6, 8, 10)), (100, (4, 36, 68, 100))],
)
def test_the_first_look_is_after_four_rounds_the_last_at_the_end_and_the_others_evenly_between(rounds, expected):
    assert looks(rounds, 0.01) == expected


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 37, 100, 199])
def test_there_are_at_most_four_looks_that_rise_from_a_verdicts_least_rounds_to_the_last(rounds):
    found = looks(rounds, 0.01)
    assert 1 <= len(found) <= MOST_LOOKS == 4
    assert list(found) == sorted(set(found))
    assert found[-1] == rounds
    assert found[0] == min(rounds, LEAST_ROUNDS)


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 10, 50])
def test_without_a_wanted_precision_there_is_one_look_at_the_end_with_all_of_the_confidence(rounds):
    assert looks(rounds, None) == (rounds,)
    assert shared_confidence(rounds, None) == pytest.approx(CONFIDENCE)


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_few_rounds_are_looked_at_once(rounds):
    assert looks(rounds, 0.01) == (rounds,)
    assert shared_confidence(rounds, 0.01) == pytest.approx(CONFIDENCE)


@pytest.mark.parametrize(("rounds", "error"), [(5, 0.005), (6, 0.01 / 3), (7, 0.0025), (10, 0.0025), (99, 0.0025)])
def test_all_looks_together_may_err_as_often_as_one(rounds, error):
    assert 1 - shared_confidence(rounds, 0.05) == pytest.approx(error)
    assert (1 - shared_confidence(rounds, 0.05)) * len(looks(rounds, 0.05)) == pytest.approx(1 - CONFIDENCE)
