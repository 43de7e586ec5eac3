"""Runs and a baseline that tests of verdicts begin with."""

from __future__ import annotations

import numpy as np
from synthetic_run import CONV, OREPA, FakeRun, cell, cells_frame, full_run

from harness.verdict.baseline import make_baseline
from harness.verdict.rows import Check
from harness.verdict.rules import Verdict

BASELINE = make_baseline(full_run(seed=0))


def verdicts(result: Check, *which: Verdict) -> set[tuple[str, str, str, str]]:
    chosen = which or (Verdict.REGRESSED,)
    return {(row.cell, row.metric, row.form, str(row.verdict)) for row in result.rows if row.verdict in chosen}


def one_metric(metric, values, form="", **kwargs) -> FakeRun:
    """conv and orepa with a single quantity; `values` are orepa's."""
    run = FakeRun(cells_frame([cell("conv"), cell("orepa")]), **kwargs)
    run.put(CONV, metric, np.ones_like(np.atleast_1d(values), dtype=float) * 0.5, form)
    return run.put(OREPA, metric, values, form)
