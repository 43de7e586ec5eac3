"""The doctor with real workers, as short as it can be."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from harness.doctor import examine
from harness.report.doctor_text import doctor_json
report = examine(4.0)
assert "torch" not in sys.modules
print(doctor_json(report))
"""


@pytest.mark.slow
def test_the_doctor_measures_this_machine_in_fresh_processes_and_leaves_none_behind(user):
    command = [sys.executable, "-c", SCRIPT]
    answer = subprocess.run(
        command, cwd=user.home, env=user.environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["facts"]["threads"] == 1  # the environment of these tests says so
    assert found["facts"]["devices"]["cpu"]["absent"] is None
    noise = found["noise"]
    assert noise["rounds"] >= 4
    assert noise["passes"] >= noise["rounds"]
    assert 0 < noise["sd"] < noise["sd_most"]
    assert 1e-5 < noise["step"] < 1
    assert 0 < noise["cpu"] < 1.5
    abouts = {finding["about"] for finding in found["findings"]}
    assert {"noise", "drift", "switches", "activity", "threads", "governor", "memory", "disk", "devices"} <= abouts
    assert (user.home / "results").exists() is False
    assert user.wait_until_alone() == []
