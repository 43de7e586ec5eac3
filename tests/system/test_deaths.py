"""A worker that dies, hangs, is killed or runs out of memory becomes a record, and the run goes on."""

from __future__ import annotations

import pytest

SUITE = """
axes: {block: [conv, acb, repvgg], backbone: layer, image_size: 14, batch_size: 2}
metrics: [params, saved_memory, train_step]
budget: {rounds: 3, seconds: 0.02, timeout: 6, memory: 1GiB}
"""

FATES = {
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "timeout": "import time; time.sleep(600)",
    "error": "raise ValueError('no luck')",
    "oom": "self.hoard = [torch.ones(64 * 2**20) for _ in range(64)]",
}


@pytest.mark.slow
@pytest.mark.parametrize("fate", FATES)
def test_a_block_that_dies_costs_itself_alone(user, mutated, fate):
    old = "    def forward(self, x_NCHW: Tensor) -> Tensor:\n"
    user.source = mutated("blocks/acb.py", old, f"{old}        import torch\n        {FATES[fate]}\n")
    done = user.run("run", user.suite(SUITE), "--out", "run")
    assert done.returncode == 3, done.stderr
    records = user.records(user.home / "run")
    acb = next(r["cell"] for r in records if r["metric"] == "train_step" and r["status"] == fate)
    by_status = {(r["cell"] == acb, r["metric"], r["round"]): r["status"] for r in records}
    assert by_status[True, "saved_memory", 0] == fate
    assert by_status[True, "params", 0] == "ok" or fate != "oom"
    # two strikes, then it is left out and costs no more time
    assert [by_status[True, "train_step", i] for i in range(3)] == [fate, fate, "skipped"]
    others = {status for (is_acb, _, _), status in by_status.items() if not is_acb}
    assert others == {"ok", "partial"}
    assert "1 failed" in done.stdout
    assert len(records) == len({(r["task"], r["cell"], r["metric"]) for r in records})
    shown = user.run("show", "run", acb)
    assert fate in shown.stdout
    if fate == "error":
        assert "ValueError: no luck" in shown.stdout
        assert "Traceback" in shown.stdout


@pytest.mark.slow
def test_what_a_dying_worker_said_is_kept(user, mutated):
    old = "    def forward(self, x_NCHW: Tensor) -> Tensor:\n"
    cry = "import os; print('my last words', flush=True); os.abort()"
    user.source = mutated("blocks/acb.py", old, f"{old}        {cry}\n")
    user.run("run", user.suite(SUITE.replace("rounds: 3", "rounds: 1")), "--out", "run")
    dead = [r for r in user.records(user.home / "run") if r["status"] == "killed"]
    assert dead
    assert all("my last words" in r["output"] and "SIGABRT" in r["reason"] for r in dead)


@pytest.mark.slow
def test_failed_cells_can_be_tried_again(user, mutated):
    old = "    def forward(self, x_NCHW: Tensor) -> Tensor:\n"
    flaky = "import os\n        if not os.path.exists('mended'): raise OSError('broken for now')"
    user.source = mutated("blocks/acb.py", old, f"{old}        {flaky}\n")
    suite = user.suite(SUITE)
    assert user.run("run", suite, "--out", "run").returncode == 3
    (user.home / "mended").touch()
    assert user.run("run", suite, "--out", "run").returncode == 3, "without --retry nothing is repeated"
    done = user.run("run", suite, "--out", "run", "--retry", "failed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 cells measured (2 reused), 0 failed" in done.stdout
