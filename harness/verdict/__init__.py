"""What changed, and how surely: statistics, comparisons, baselines and checks. Pure, no torch."""

from harness.verdict.against_baseline import check
from harness.verdict.baseline import NoBaseline, load_baseline, make_baseline, write_baseline
from harness.verdict.compare import comparisons
from harness.verdict.head_to_head import compare_revisions
from harness.verdict.rows import Check, Row
from harness.verdict.rules import Verdict

__all__ = [
    "Check",
    "NoBaseline",
    "Row",
    "Verdict",
    "check",
    "compare_revisions",
    "comparisons",
    "load_baseline",
    "make_baseline",
    "write_baseline",
]
