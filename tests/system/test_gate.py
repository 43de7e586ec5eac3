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
        with torch.no_grad():  # twice as much again as forward and backward together, so that a busy machine
            for _ in range(6):  # hides it from nobody; and nothing kept
                self.branches(x_NCHW)
"""
KEEPS_MORE = """        y = self.branches(x_NCHW)
        return y * y.detach().clone().fill_(1.0)

    def kernel"""


EXACT_SUITE = """
axes: {block: [conv, repvgg, acb], backbone: layer, image_size: 12, batch_size: 2}
metrics: [params, saved_memory, fusion_error, fused_output]
"""
BRANCHES = "        self.branches = Parallel(spec.kernel_size, branches)\n"
ONE_PARAMETER_MORE = """        import torch
        self.spare = nn.Parameter(torch.zeros(1))
"""
ANOTHER_EPS = """        for norm in self.branches.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = 1e-3
"""
CHANGES = {
    "saved_memory (train)": ("blocks/repvgg.py", RETURN, KEEPS_MORE),
    "params (train)": ("blocks/repvgg.py", BRANCHES, BRANCHES + ONE_PARAMETER_MORE),
    "fused_output (fused)": ("blocks/repvgg.py", BRANCHES, BRANCHES + ANOTHER_EPS),
}
"""The only reading that each change may fail, and the change."""


def regressed_rows(user, run):
    """Exit code, and the regressed rows."""
    done = user.run("check", run, "--baseline", "base.json", "--format", "json")
    return done.returncode, [row for row in json.loads(done.stdout)["rows"] if row["verdict"] == "REGRESSED"]


def regressed(user, run):
    """Exit code, and (block, metric, form) of every regressed reading."""
    code, rows = regressed_rows(user, run)
    return code, {(row["label"], row["metric"], row["form"]) for row in rows}


def printed(row, side):
    """A value as text and annotations print it; None where they choose a unit."""
    if row["unit"] == "x":
        return f"{row[side]:.3f} x reference"
    return {"count": f"{row[side]:,.0f}", "close": f"{row[side]:.9g}"}.get(row["kind"])


def assert_all_is_said(user, run, rows):
    """Both formats name block, reading, both values and the command of every failing row."""
    text = user.run("check", run, "--baseline", "base.json")
    github = user.run("check", run, "--baseline", "base.json", "--format", "github")
    assert (text.returncode, github.returncode) == (1, 1)
    in_text = [line for line in text.stdout.splitlines() if line.startswith("REGRESSED")]
    on_github = [line for line in github.stdout.splitlines() if line.startswith("::error ")]
    assert len(in_text) == len(on_github) == len(rows)
    for row in rows:
        wanted = [row["label"], f"{row['metric']} ({row['form']})", printed(row, "before"), printed(row, "now")]
        for lines in (in_text, on_github):
            assert any(all(part in line for part in wanted if part) for line in lines), (wanted, lines)
        assert f"repeat {row['label']}: {row['command']}" in text.stdout.splitlines()
        assert any(line.endswith(f"%0Arepeat: {row['command']}") for line in on_github)
        assert f"--only {row['cell']}" in row["command"]


@pytest.mark.slow
def test_saved_bytes_parameters_and_fused_outputs_each_fail_the_gate_with_their_own_row_alone(user, mutated):
    suite, original = user.suite(EXACT_SUITE), user.source
    assert user.run("run", suite, "--out", "before").returncode == 0
    assert user.run("baseline", "before", "--out", "base.json").returncode == 0
    assert user.run("run", suite, "--out", "same").returncode == 0
    assert regressed(user, "same") == (0, set())

    for number, (reading, change) in enumerate(CHANGES.items()):
        user.source = mutated(change)
        run = f"changed-{number}"
        assert user.run("run", suite, "--out", run).returncode == 0
        user.source = original
        code, rows = regressed_rows(user, run)
        assert (code, [(row["label"], f"{row['metric']} ({row['form']})") for row in rows]) == (
            1,
            [("repvgg", reading)],
        )
        assert_all_is_said(user, run, rows)


@pytest.mark.slow
def test_a_slower_block_and_an_extra_saved_tensor_fail_the_gate_and_nothing_else_does(user, mutated):
    suite = user.suite(SUITE)
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
    metrics = {metric for _, metric, _ in rows}
    assert "macs" in metrics, "the work itself is counted too"
    assert metrics.isdisjoint({"params", "saved_memory", "train_memory", "fusion_error"})
    assert_all_is_said(user, "slow", regressed_rows(user, "slow")[1])

    user.source = mutated(("blocks/repvgg.py", RETURN, KEEPS_MORE))
    assert user.run("run", suite, "--out", "fat").returncode == 0
    code, rows = regressed(user, "fat")
    assert code == 1
    assert ("repvgg", "saved_memory", "train") in rows
    assert {block for block, _, _ in rows} == {"repvgg"}
