"""What is written to the journal is read back as it was, and is JSON that any tool reads."""

from __future__ import annotations

import json
import math

import pytest

from harness.records import Reading


@pytest.mark.parametrize("value", [0, 1814073344, 0.1, -2.5e-17, math.inf, -math.inf, math.nan])
def test_a_reading_survives_strict_json(value):
    line = json.dumps(Reading("macs", "train", "1", (value, 1.5), {"seed": 3}).to_json(), allow_nan=False)
    again = Reading.from_json(json.loads(line))
    first, second = again.values
    assert first == value or (math.isnan(first) and math.isnan(value))
    assert type(first) is type(value)
    assert second == 1.5
    assert again.facts == {"seed": 3}
