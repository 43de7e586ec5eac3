"""The regression gate as CI would use it: a changed block fails it, everything else does not."""

from __future__ import annotations

import json

import pytest

SUITE = """
axes: {block: [conv, repvgg, acb], backbone: layer, image_size: 28, batch_size: 4}
metrics: [params, macs, saved_memory, train_memory, fusion_error, train_step, latency]
budget: {rounds: 6, seconds: 0.1, precision: null}
"""
RETURN = "        y_NCHW: Tensor = self.branches(x_NCHW)\n        return y_NCHW\n\n    def kernel"
RETURN_REPVGG = RETURN.replace("self.branches(x_NCHW)", "self.after(self.branches(x_NCHW))")
SLOWER = """        import torch
        with torch.no_grad():  # twice as much again as forward and backward together, so that a busy machine
            for _ in range(6):  # hides it from nobody; and nothing kept
                self.branches(x_NCHW)
"""
KEEPS_MORE = """        y = self.branches(x_NCHW)
        return y * y.detach().clone().fill_(1.0)

    def kernel"""


EXACT_SUITE = """
axes: {block: [conv, repvgg, acb, dbb], backbone: layer, image_size: 12, batch_size: 2}
metrics: [params, saved_memory, fusion_error, fused_output]
"""
IN_DBB = "        self.branches = Parallel(spec.kernel_size, branches)\n"
ONE_PARAMETER_MORE = """        import torch
        self.spare = nn.Parameter(torch.ones(1))  # a zero would be drawn, and shift what is drawn after it
"""
IN_ACB = '        self.branches = Parallel(k, {"k x k": square, "k x 1": vertical, "1 x k": horizontal})\n'
ANOTHER_EPS = """        for norm in self.branches.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eps = 1e-3
"""
CHANGES = {
    ("repvgg", "saved_memory (train)"): ("blocks/reparam/repvgg.py", RETURN_REPVGG, KEEPS_MORE),
    ("dbb", "params (train)"): ("blocks/reparam/dbb.py", IN_DBB, IN_DBB + ONE_PARAMETER_MORE),
    ("acb", "fused_output (fused)"): ("blocks/reparam/acb.py", IN_ACB, IN_ACB + ANOTHER_EPS),
}
"""The only reading that each change may fail, and the change. Each is of another block, and no cell has two blocks: one
run shows what each does by itself. That a single such row is enough for exit code 1 stands in test_verdict_check.py."""


def regressed_rows(shell, run):
    """Exit code, and the regressed rows."""
    done = shell.run("check", run, "--baseline", "base.json", "--format", "json")
    return done.returncode, [row for row in json.loads(done.stdout)["rows"] if row["verdict"] == "REGRESSED"]


def regressed(shell, run):
    """Exit code, and (block, metric, form) of every regressed reading."""
    code, rows = regressed_rows(shell, run)
    return code, {(row["label"], row["metric"], row["form"]) for row in rows}


def printed(row, side):
    """A value as text and annotations print it; None where they choose a unit."""
    if row["unit"] == "x":
        return f"{row[side]:.3f} x reference"
    return {"count": f"{row[side]:,.0f}", "close": f"{row[side]:.9g}"}.get(row["kind"])


def assert_all_is_said(shell, run, rows):
    """Both formats name block, reading, both values and the command of every failing row."""
    text = shell.run("check", run, "--baseline", "base.json")
    github = shell.run("check", run, "--baseline", "base.json", "--format", "github")
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


def measured_before_and_again(shell, suite):
    """A run, a baseline of it, and another run of the same code: held to the baseline, nothing fails."""
    assert shell.run("run", suite, "--out", "before").returncode == 0
    assert shell.run("baseline", "before", "--out", "base.json").returncode == 0
    assert shell.run("run", suite, "--out", "same").returncode == 0
    assert regressed(shell, "same") == (0, set())


def measured_with(user, suite, source):
    """A run with a changed source, in a shell of its own."""
    original, user.source = user.source, source
    with user.shell() as shell:
        assert shell.run("run", suite, "--out", "changed").returncode == 0
    user.source = original


@pytest.mark.slow
def test_saved_bytes_parameters_and_fused_outputs_each_fail_the_gate_with_their_own_row_alone(user, mutated):
    suite = user.suite(EXACT_SUITE)
    with user.shell() as shell:
        measured_before_and_again(shell, suite)
        measured_with(user, suite, mutated(*CHANGES.values()))
        code, rows = regressed_rows(shell, "changed")
        assert code == 1
        found = [(row["label"], f"{row['metric']} ({row['form']})") for row in rows]
        assert sorted(found) == sorted(CHANGES)
        assert_all_is_said(shell, "changed", rows)


@pytest.mark.slow
@pytest.mark.alone
def test_a_slower_block_and_an_extra_saved_tensor_fail_the_gate_and_nothing_else_does(user, mutated):
    suite = user.suite(SUITE)
    with user.shell() as shell:
        measured_before_and_again(shell, suite)
        waiting = ("blocks/reparam/repvgg.py", RETURN_REPVGG, SLOWER + RETURN_REPVGG)
        changes = waiting, ("blocks/reparam/acb.py", RETURN, KEEPS_MORE)
        measured_with(user, suite, mutated(*changes))
        code, rows = regressed(shell, "changed")
        assert code == 1
        assert {block for block, _, _ in rows} == {"repvgg", "acb"}, "the reference is as it was"
        slower = {metric for block, metric, _ in rows if block == "repvgg"}
        assert ("repvgg", "train_step", "train") in rows
        assert "macs" in slower, "the work itself is counted too"
        assert slower.isdisjoint({"params", "saved_memory", "train_memory", "fusion_error"})
        fatter = {metric for block, metric, _ in rows if block == "acb"}
        assert "saved_memory" in fatter
        assert fatter.isdisjoint({"params", "macs", "fusion_error"})
        assert_all_is_said(shell, "changed", regressed_rows(shell, "changed")[1])
