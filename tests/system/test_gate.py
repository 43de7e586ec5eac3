"""The regression gate as CI would use it: a changed block fails it, everything else does not."""

from __future__ import annotations

import json

import pytest

SUITE = """
axes: {block: [conv, repvgg, acb], backbone: layer, image_size: 28, batch_size: 4}
metrics: [params, macs, saved_memory, train_memory, fusion_error, train_step, latency]
budget: {rounds: 8, seconds: 0.15}
"""
RETURN = "        return self.branches(x_NCHW)  # type: ignore[no-any-return]\n\n    def kernel"
SLOWER = """        import torch
        with torch.no_grad():  # as much again as forward and backward together, and nothing kept
            for _ in range(3):
                self.branches(x_NCHW)
"""
KEEPS_MORE = """        y = self.branches(x_NCHW)
        return y * y.detach().clone().fill_(1.0)

    def kernel"""


def regressed(user, run):
    """Exit code, and (block, metric, form) of every regressed reading."""
    done = user.run("check", run, "--baseline", "base.json", "--format", "json")
    rows = json.loads(done.stdout)["rows"]
    return done.returncode, {
        (row["label"], row["metric"], row["form"]) for row in rows if row["verdict"] == "REGRESSED"
    }


@pytest.mark.slow
def test_a_slower_block_and_an_extra_saved_tensor_fail_the_gate_and_nothing_else_does(user, mutated):
    suite = user.suite(SUITE)
    original = user.source
    assert user.run("run", suite, "--out", "before").returncode == 0
    assert user.run("baseline", "before", "--out", "base.json").returncode == 0

    assert user.run("run", suite, "--out", "same").returncode == 0
    assert regressed(user, "same") == (0, set())

    user.source = mutated(("blocks/repvgg.py", RETURN, SLOWER + RETURN))
    assert user.run("run", suite, "--out", "slow").returncode == 0
    code, rows = regressed(user, "slow")
    assert code == 1
    assert ("repvgg", "train_step", "train") in rows
    assert {block for block, _, _ in rows} == {"repvgg"}
    assert {metric for _, metric, _ in rows} <= {"train_step", "latency", "macs"}, "the work itself is counted too"

    user.source = mutated(("blocks/repvgg.py", RETURN, KEEPS_MORE))
    assert user.run("run", suite, "--out", "fat").returncode == 0
    code, rows = regressed(user, "fat")
    assert code == 1
    assert ("repvgg", "saved_memory", "train") in rows
    assert {block for block, _, _ in rows} == {"repvgg"}

    user.source = original
    said = user.run("check", "fat", "--baseline", "base.json").stdout
    assert "harness run" in said, "the command that reproduces the cell"
    assert "--only" in said
