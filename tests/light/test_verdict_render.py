"""A check in print: text, annotations, JSON."""

from __future__ import annotations

import json

import pytest
from synthetic_run import CONV, OREPA, full_run

from harness.errors import UnknownName
from harness.verdict import check, make_baseline, render_check
from harness.verdict.rows import Check, Row
from harness.verdict.rules import Verdict

BASELINE = make_baseline(full_run())


def test_what_changed_comes_first_and_what_did_not_is_a_number():
    printed = render_check(check(full_run(1, slow=2, extra=512), BASELINE))
    assert "280,000,000 B" in printed
    assert "+512 B" in printed
    assert f"repeat orepa: harness run suites/quick.yaml --only {OREPA}" in printed
    assert printed.splitlines()[-1] == "3 REGRESSED, 17 SAME; 0 cells failed; exit 1"
    assert "SAME " not in printed.rpartition("\n")[0]


def test_failures_and_a_changed_machine_are_said():
    run = full_run(1).fail(CONV, "oom", "killed by the kernel", metric="params")
    printed = render_check(check(run, {**BASELINE, "fingerprint": {**BASELINE["fingerprint"], "machine": {}}}))
    assert "cpu: None -> Some CPU" in printed
    assert "failed: " + CONV + ": oom: params: killed by the kernel" in printed
    assert printed.endswith("exit 3")


def test_github_gets_one_escaped_line_per_annotation():
    printed = render_check(check(full_run(1, extra=512), BASELINE), "github")
    (line,) = [line for line in printed.splitlines() if line.startswith("::")]
    assert line.startswith(
        "::error title=REGRESSED%3A orepa%3A saved_memory::orepa: saved_memory: 280,000,000 B -> 280,000,512 B ("
    )
    assert "%0Arepeat: harness run" in line


def test_an_annotation_for_what_does_not_gate_is_a_notice():
    row = Row("c", "50% off, a:b\n", "g", "m", "", Verdict.REGRESSED, gated=False)
    (line, _) = render_check(Check("run", "suite", (row,), {}), "github").splitlines()
    assert line.startswith("::notice title=REGRESSED%3A 50%25 off%2C a%3Ab%0A%3A m::")


def test_json_is_json_without_nan():
    value = json.loads(render_check(check(full_run(1, slow=2), BASELINE), "json"), parse_constant=pytest.fail)
    assert value["exit_code"] == 1
    assert value["counts"]["REGRESSED"] == 2
    assert len(value["rows"]) == 20
    assert {"cell", "label", "group", "metric", "form", "before", "now", "ratio", "low", "high", "rounds", "reason",
            "command"} <= set(value["rows"][0])  # fmt: skip


def test_many_undecided_rows_do_not_bury_the_rest():
    rows = tuple(Row(f"c{i}", f"c{i}", "g", "m", "", Verdict.INCONCLUSIVE) for i in range(50))
    printed = render_check(Check("run", "suite", rows, {}))
    assert "... and 20 more INCONCLUSIVE" in printed


def test_an_empty_check_says_so():
    assert render_check(Check("run", "suite", (), {})).endswith("nothing to compare; 0 cells failed; exit 5")


def test_another_format_is_refused():
    with pytest.raises(UnknownName, match="github"):
        render_check(Check("run", "suite", (), {}), "githb")
