"""A worker that dies, hangs, is killed or runs out of memory becomes a record, and the run goes on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from harness.store.run import open_run

ROOT = Path(__file__).parents[2]

SUITE = """
axes: {block: [conv, acb, dbb, orepa, repvgg], backbone: layer, image_size: 14, batch_size: 2}
metrics: [params, saved_memory, train_step]
budget: {rounds: 3, seconds: 0.02, timeout: 5, memory: 1GiB, precision: null}
"""
FORWARD = "    def forward(self, x_NCHW: Tensor) -> Tensor:\n"
FAILURES = {
    "acb": ("killed", "import os; print('my last words', flush=True); os.kill(os.getpid(), 9)"),
    "dbb": ("timeout", "import time; time.sleep(600)"),
    "orepa": ("error", "raise ValueError('no luck')"),
    "repvgg": ("oom", "import torch; hoard = [torch.ones(64 * 2**20) for _ in range(64)]"),
}


def failing(block, statement):
    """A change of a block's source that runs `statement` whenever it is used."""
    path = f"blocks/reparam/{block}.py"
    lines = (ROOT / "harness" / path).read_text()
    anchor = FORWARD if lines.count(FORWARD) == 1 else lines[lines.rindex(FORWARD) :].splitlines()[1] + "\n"
    return path, anchor, f"{FORWARD}        {statement}\n" if anchor == FORWARD else f"        {statement}\n{anchor}"


@pytest.mark.slow
def test_blocks_that_die_cost_themselves_alone(user, mutated):
    """One run in which one block is killed, one hangs, one raises, one eats the memory, and one is well."""
    user.source = mutated(*(failing(block, statement) for block, (_, statement) in FAILURES.items()))
    with user.shell() as shell:
        done = shell.run("run", user.suite(SUITE), "--out", "run")
        assert done.returncode == 3, done.stderr
        run = open_run(user.home / "run")
        names = {id_: cell.block.name for id_, cell in run.planned_cells.items()}
        shown = shell.run("show", "run", next(id_ for id_, name in names.items() if name == "orepa")).stdout
    records = [record for record in run.records() if record.cell in names]  # some are about a group
    status = {(names[r.cell], r.metric, r.round): str(r.status) for r in records}
    for block, (ending, _) in FAILURES.items():
        assert status[block, "params", 0] == "ok"
        assert status[block, "saved_memory", 0] == ending
        # two strikes, then it is left out and costs no more time
        assert [status[block, "train_step", i] for i in range(3)] == [ending, ending, "skipped"]
    assert status["conv", "saved_memory", 0] == "ok"
    assert [status["conv", "train_step", i] for i in range(3)] == ["partial", "partial", "ok"]
    written = [record for record in user.records(user.home / "run") if record["cell"] in names]
    times = Counter((record["cell"], record["metric"], record["round"]) for record in written)
    # the block that eats the memory makes its group look too large: what it had measured by then is measured again
    assert {what[1:] for what, count in times.items() if count > 1} <= {("train_step", 0)}
    assert "1 cells measured (0 reused), 4 failed" in done.stdout
    reasons = {names[r.cell]: r for r in records if r.status.failed}
    assert "my last words" in reasons["acb"].output
    assert "SIGKILL" in reasons["acb"].reason
    assert "5 s" in reasons["dbb"].reason
    assert "ValueError: no luck" in shown
    assert "Traceback" in shown


@pytest.mark.slow
def test_failed_cells_can_be_tried_again(user, mutated):
    flaky = "import os\n        if not os.path.exists('mended'): raise OSError('broken for now')"
    user.source = mutated(failing("acb", flaky))
    suite = user.suite(SUITE.replace("dbb, orepa, repvgg", "repvgg").replace("rounds: 3", "rounds: 2"))
    with user.shell() as shell:
        assert shell.run("run", suite, "--out", "run").returncode == 3
        (user.home / "mended").touch()
        assert shell.run("run", suite, "--out", "run").returncode == 3, "without --retry nothing is repeated"
        done = shell.run("run", suite, "--out", "run", "--retry", "failed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 cells measured (2 reused), 0 failed" in done.stdout
