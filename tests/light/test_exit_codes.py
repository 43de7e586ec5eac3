"""Exit codes: 2 usage, 1 regression, 3 failed cells, 5 nothing compared, 4 undecided (strict), 0, strongest first."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import CONV, OREPA, FakeRun, cell, cells_frame, full_run

from harness.records import Fingerprint
from harness.report.check_text import render_check
from harness.store.run import open_run
from harness.verdict import Verdict, check, load_baseline, make_baseline, write_baseline
from harness.verdict.comparability import Level
from harness.verdict.rows import STRONGEST_FIRST, Check, Exit, Row, strongest

R, I, S, M, N, X, UP = (  # noqa: E741
    Verdict.REGRESSED, Verdict.INCONCLUSIVE, Verdict.SAME, Verdict.MISSING, Verdict.NEW, Verdict.INCOMPARABLE,
    Verdict.IMPROVED,
)  # fmt: skip


def row(verdict: Verdict, gated: bool = True, standing: Level = Level.SAME) -> Row:
    return Row("c", "c", "g", "m", "", verdict, gated, standing=standing)


def advice(verdict: Verdict) -> Row:
    """As on the same machine with another torch."""
    return row(verdict, gated=False, standing=Level.COMPARABLE)


def off(verdict: Verdict) -> Row:
    """As where the suite says gate: false."""
    return row(verdict, gated=False)


def code(rows: list[Row], failed: bool = False, strict: bool = False) -> int:
    return Check("run", "suite", tuple(rows), {"c": "oom"} if failed else {}, (), strict).exit_code


def gated(*verdicts: Verdict) -> list[Row]:
    return [row(verdict) for verdict in verdicts]


UNIT_CHANGED = row(I, standing=Level.REFUSED)


@pytest.mark.parametrize(
    ("rows", "plain", "strict", "failed", "failed_strict"),
    [
        # what a gate watches
        (gated(S), 0, 0, 3, 3),
        (gated(UP), 0, 0, 3, 3),
        (gated(R), 1, 1, 1, 1),
        (gated(R, S, I, M, N, X, UP), 1, 1, 1, 1),
        (gated(I), 0, 4, 3, 3),
        (gated(S, I), 0, 4, 3, 3),
        (gated(S, M), 0, 4, 3, 3),
        (gated(S, N), 0, 0, 3, 3),
        (gated(S, X), 0, 0, 3, 3),
        (gated(S, I, M, N, X, UP), 0, 4, 3, 3),
        # nothing compared
        ([], 5, 5, 3, 3),
        (gated(M), 5, 5, 3, 3),
        (gated(N), 5, 5, 3, 3),
        (gated(M, N), 5, 5, 3, 3),
        (gated(X), 5, 5, 3, 3),
        (gated(X, M, N), 5, 5, 3, 3),
        ([UNIT_CHANGED], 5, 5, 3, 3),
        ([UNIT_CHANGED, *gated(S)], 0, 4, 3, 3),
        # what no gate watches fails nothing, and does not stand in for what a gate would have compared
        ([off(R)], 0, 0, 3, 3),
        ([off(R), *gated(S)], 0, 0, 3, 3),
        ([off(R), *gated(R)], 1, 1, 1, 1),
        ([off(v) for v in (R, I, M, S)], 0, 0, 3, 3),
        ([off(M)], 5, 5, 3, 3),
        ([off(S), *gated(M)], 5, 5, 3, 3),
        ([off(S), *gated(X)], 5, 5, 3, 3),
        # advice was compared and fails nothing
        ([advice(R)], 0, 0, 3, 3),
        ([advice(I)], 0, 0, 3, 3),
        ([advice(R), *gated(S)], 0, 0, 3, 3),
        ([advice(R), *gated(M)], 0, 4, 3, 3),
        ([advice(R), *gated(R)], 1, 1, 1, 1),
        ([advice(S), *gated(X)], 0, 0, 3, 3),
    ],
)  # fmt: skip
def test_every_combination(rows, plain, strict, failed, failed_strict):
    found = [code(rows, failed, strict) for failed in (False, True) for strict in (False, True)]
    assert found == [plain, strict, failed, failed_strict]


kinds = st.one_of(
    st.builds(row, st.sampled_from(Verdict)),
    st.builds(off, st.sampled_from(Verdict)),
    st.builds(advice, st.sampled_from([R, I, S, UP])),
    st.just(UNIT_CHANGED),
)
several = st.lists(kinds, max_size=6)


def strength(exit_code: int) -> int:
    return STRONGEST_FIRST.index(Exit(exit_code))


@given(several, st.booleans(), st.booleans())
def test_what_holds_for_any_check(rows, failed, strict):
    found = code(rows, failed, strict)
    assert code(rows[::-1], failed, strict) == found
    assert code([*rows, row(R)], failed, strict) == 1
    assert code(rows, True, strict) in (1, 3)
    assert (found == 1) == any(one.gated and one.verdict is R for one in rows)
    assert strict or found != 4
    assert strength(code(rows, failed, True)) <= strength(code(rows, failed, False)), "strict is never the weaker"
    if not any(one.verdict in (R, I, S, UP) and one.standing is not Level.REFUSED for one in rows):
        assert found in (3, 5), "nothing compared never passes"


@given(several, st.booleans(), st.booleans(), st.sampled_from(Verdict))
def test_what_has_no_gate_changes_no_code_where_something_has(rows, failed, strict, verdict):
    rows = [*rows, row(S)]
    assert code([*rows, off(verdict)], failed, strict) == code(rows, failed, strict)
    assert code([*rows, advice(R)], failed, strict) == code(rows, failed, strict)


@given(several, st.booleans())
def test_a_reason_is_given_just_when_nothing_was_compared(rows, strict):
    result = Check("run", "suite", tuple(rows), {}, (), strict)
    assert bool(result.nothing) == (result.exit_code == 5)
    assert (result.nothing in render_check(result)) or not result.nothing


def test_the_strongest_of_several():
    assert [int(one) for one in STRONGEST_FIRST] == [2, 1, 3, 5, 4, 0]
    assert set(STRONGEST_FIRST) == set(Exit)
    for place, stronger in enumerate(STRONGEST_FIRST):
        assert all(strongest([weaker, stronger]) is stronger for weaker in STRONGEST_FIRST[place:])
    assert strongest([]) is Exit.PASSED


# whole checks


def only_times(seed: int, slow: float = 1.0, **kwargs) -> FakeRun:
    """conv and orepa with nothing but times."""
    run = full_run(seed, slow, **kwargs)
    run.rows = [one for one in run.rows if one["unit"] == "s"]
    return run


ELSEWHERE = Fingerprint("abc", {"torch": "2.14.1"}, {"cpu": {"model": "Another CPU"}, "threads": 2})
NEWER = Fingerprint("abc", {"torch": "2.15.0"}, {"cpu": {"model": "Some CPU"}, "threads": 2})
HERE = Fingerprint("abc", {"torch": "2.14.1"}, {"cpu": {"model": "Some CPU"}, "threads": 2})
TIMES = make_baseline(only_times(0, fingerprint=HERE))
ALL = make_baseline(full_run(0, fingerprint=HERE))


def nothing_but(status: str) -> FakeRun:
    run = FakeRun(cells_frame([cell("conv"), cell("orepa")]), fingerprint=HERE)
    return run.fail(CONV, status).fail(OREPA, status)


@pytest.mark.parametrize(
    ("run", "baseline", "plain", "strict", "sentence"),
    [
        (only_times(1, fingerprint=HERE), TIMES, 0, 0, ""),
        (only_times(1, slow=2, fingerprint=HERE), TIMES, 1, 1, ""),
        (only_times(1, slow=2, fingerprint=NEWER), TIMES, 0, 0, ""),
        (only_times(1, slow=2, fingerprint=ELSEWHERE), TIMES, 5, 5,
         "no reading that is gated can be held against the baseline (cpu model: Some CPU then, Another CPU now)"),
        (only_times(1, fingerprint=ELSEWHERE).fail(CONV), TIMES, 3, 3, "no reading that is gated"),
        (full_run(1, slow=2, fingerprint=ELSEWHERE), ALL, 0, 0, ""),
        (full_run(1, extra=512, fingerprint=ELSEWHERE), ALL, 1, 1, ""),
        (full_run(1, extra=512, fingerprint=HERE).fail(CONV), ALL, 1, 1, ""),
        (full_run(1, extra=512, fingerprint=HERE, gates={"saved_memory": {"gate": False}}), ALL, 0, 0, ""),
        (nothing_but("oom"), ALL, 3, 3, "this run has none of the readings of the baseline"),
        (nothing_but("unsupported"), ALL, 5, 5, "this run has none of the readings of the baseline"),
        (nothing_but("skipped"), ALL, 5, 5, "this run has none of the readings of the baseline"),
        (FakeRun(cells_frame([cell("dbb")]), fingerprint=HERE), ALL, 5, 5, "this run has none"),
        (full_run(1, fingerprint=HERE), {**ALL, "cells": {}}, 5, 5, "the baseline has none of this run's gated readings"),
        (nothing_but("skipped"), {**ALL, "cells": {}}, 5, 5, "neither this run nor the baseline has a reading"),
    ],
)  # fmt: skip
def test_checks_of_runs(run, baseline, plain, strict, sentence):
    strictly = check(run, baseline, strict=True)
    results = [replace(strictly, strict=False), strictly]
    assert [result.exit_code for result in results] == [plain, strict]
    assert sentence in results[0].nothing
    assert bool(sentence) == bool(results[0].nothing)
    assert results[0].nothing in render_check(results[0])


def test_nothing_compared_is_one_sentence_whatever_the_number_of_reasons():
    rows = [replace(row(X), reason=f"because {i}") for i in (1, 1, 2, 3)]
    (line,) = Check("run", "suite", tuple(rows), {}).nothing.splitlines()
    assert line.endswith("(because 1, and 2 more reasons)")


# the command


STUDIES = Path(__file__).parents[2] / "results" / "studies"


@pytest.fixture(scope="module")
def quick() -> dict:
    """The baseline of a recorded run."""
    return make_baseline(open_run(STUDIES / "quick"))


@pytest.fixture
def command(tmp_path, monkeypatch, quick):
    """Run `harness` in this process: its exit code."""
    from harness.cli import main

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    shutil.copytree(STUDIES / "quick", tmp_path / "run")
    write_baseline(quick, tmp_path / "b.json")
    return run


def test_the_command_exits_with_the_checks_code(command, tmp_path):
    assert command("check", "run", "--baseline", "b.json", "--strict") == 0
    baseline = load_baseline(tmp_path / "b.json")
    cell_id, entry = next(iter(baseline["cells"].items()))
    entry["readings"]["params/train"]["value"] -= 1
    write_baseline(baseline, tmp_path / "less.json")
    assert command("check", "run", "--baseline", "less.json") == 1
    del baseline["cells"][cell_id]["readings"]["params/train"]
    baseline["cells"]["0123456789ab"] = {**entry, "readings": {"params/train": entry["readings"]["params/fused"]}}
    write_baseline(baseline, tmp_path / "more.json")
    assert command("check", "run", "--baseline", "more.json") == 0
    assert command("check", "run", "--baseline", "more.json", "--strict") == 4


def test_failed_cells_are_code_3(command, tmp_path):
    journal = tmp_path / "run" / "journal.jsonl"
    *lines, last = journal.read_text().splitlines()
    failed = json.dumps({**json.loads(last), "status": "oom", "reason": "no memory", "readings": []})
    journal.write_text("\n".join([*lines, failed]) + "\n")
    assert command("check", "run", "--baseline", "b.json", "--strict") == 3


def test_usage_errors_are_code_2_and_a_missing_baseline_is_5(command, tmp_path, capsys):
    assert command("check", "nowhere", "--baseline", "b.json") == 2
    assert command("check", "run", "--baseline", "b.json", "--no-such-option") == 2
    (tmp_path / "torn.json").write_text("{")
    assert command("check", "run", "--baseline", "torn.json") == 2
    assert command("check", "run", "--baseline", "none.json") == 5
    assert "try: make one: harness baseline RUN --out none.json" in capsys.readouterr().err
