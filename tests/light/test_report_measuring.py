"""What a report says about how a group was measured."""

from __future__ import annotations

import pytest

from harness.report.measuring import Measuring


@pytest.mark.parametrize(
    ("suspicious", "says"), [(1, "(0.1 %)"), (13, "(1.3 %)"), (100, "(10 %)"), (340, "(34 %)"), (1000, "(100 %)")]
)
def test_shares_are_percents_that_one_can_read(suspicious, says):
    (sentence,) = Measuring(samples=1000, suspicious=suspicious).sentences()
    assert says in sentence
