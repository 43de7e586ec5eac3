"""What is loaded before it is needed: seconds that a command would make its user wait. One interpreter tells it all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
def tell(*modules): print(*sorted({*sys.modules} & {*modules}), sep=",")
import harness.report, harness.verdict
tell("torch", "scipy", "matplotlib", "jinja2")
from synthetic_run import full_run
from harness.report.writing import report
report(full_run())
tell("torch", "scipy.stats", "matplotlib", "scipy")
import harness.doctor
tell("torch")
"""


@pytest.fixture(scope="module")
def loaded() -> list[str]:
    """Which heavy modules a fresh interpreter has: with verdicts and reports, after a text report, with the doctor."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{SCRIPT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_importing_needs_neither_torch_nor_scipy_nor_matplotlib(loaded):
    assert loaded[0] == ""


def test_a_text_report_does_without_scipy_stats_and_matplotlib(loaded):
    assert loaded[1] == "scipy"


def test_torch_stays_in_the_workers(loaded):
    assert loaded[2] == ""
