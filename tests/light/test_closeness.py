"""Close quantities, several values that are one result, from the journal to a verdict; and every failing row in print."""

from __future__ import annotations

import json

import numpy as np
import pytest
from synthetic_run import CONV, OREPA, FakeRun, cell, cells_frame, full_run, noisy

from harness.errors import HarnessError
from harness.quantity import Theme
from harness.records import Reading, Status
from harness.report.check_text import render_check
from harness.report.tables import TITLES, tables, views
from harness.store.frames import rounds_frame, samples_frame
from harness.verdict import Check, Row, Verdict, check, comparisons, load_baseline, make_baseline
from harness.verdict.baseline import write_baseline
from harness.verdict.rules import CLOSE_TOLERANCE, judge_close

STORED = (2.0, -0.5, 1.25, 0.0)


class CloseRun(FakeRun):
    """A stand-in whose frames are made by the store from its records, which hold all values of a reading."""

    def close(self, cell_id: str, values: tuple[float, ...], number: int = 0) -> CloseRun:
        reading = Reading("fused_output", "fused", "1", tuple(values))
        self._record(cell_id, "fused_output", number, Status.OK, "", (reading,))
        return self

    def rounds(self):
        return rounds_frame(self.records())

    def samples(self):
        return samples_frame(self.records())


def close_run(values=STORED, **kwargs) -> CloseRun:
    return CloseRun(cells_frame([cell("conv"), cell("orepa")]), **kwargs).close(CONV, STORED).close(OREPA, values)


BASELINE = make_baseline(close_run())


def rows_of(values, baseline=BASELINE, **kwargs) -> dict[str, Row]:
    return {row.cell: row for row in check(close_run(values, **kwargs), baseline).rows}


def moved(place: int, by: float) -> tuple[float, ...]:
    return tuple(value + by * (place == i) for i, value in enumerate(STORED))


# the rule


@pytest.mark.parametrize(
    ("now", "expected", "says"),
    [
        (STORED, "SAME", "4 values"),
        (moved(1, 0.9e-4), "SAME", "most of all the 2nd: by 9e-05"),
        (moved(1, -1.1e-4), "REGRESSED", "changed: 1 of 4 values differ, most of all the 2nd: by 0.00011"),
        (moved(0, 1.9e-4), "SAME", ""), (moved(0, 2.1e-4), "REGRESSED", "the 1st"),  # relative to 2
        ((2.1, -0.5, 1.0, 0.3), "REGRESSED", "3 of 4 values differ, most of all the 4th: by 0.3 (tolerance 0.0001)"),
        ((2.0, float("nan"), 1.25, 0.0), "REGRESSED", "the 2nd: not a finite number"),
        ((2.0, -0.5, 1.25, float("inf")), "REGRESSED", "the 4th: not a finite number"),
        (STORED[:3], "REGRESSED", "changed: 3 values where 4 were"), ((), "REGRESSED", "0 values where 4 were"),
    ],
)  # fmt: skip
def test_every_value_has_to_be_close_to_the_stored_one(now, expected, says):
    verdict, reason, _ = judge_close(STORED, now, CLOSE_TOLERANCE)
    assert verdict == expected
    assert says in reason


def test_the_values_shown_are_those_that_differ_most():
    assert judge_close(STORED, moved(2, 0.5), 1e-4)[2] == (1.25, 1.75)
    assert judge_close(STORED, STORED[:1], 1e-4)[2] == (2.0, 2.0)
    assert np.isnan(judge_close(STORED, (), 1e-4)[2][1])


def test_what_was_not_a_number_is_never_close():
    nan = (float("nan"),)
    assert judge_close(nan, (1.0,), 1e-4)[0] is judge_close(nan, nan, 1e-4)[0] is Verdict.REGRESSED
    assert judge_close((), (), 1e-4)[0] is Verdict.REGRESSED


# through the store, the baseline and the check


def test_a_row_of_the_frame_is_the_first_value_and_the_samples_are_all_of_them():
    run = close_run()
    (row,) = run.frame().query(f"cell == '{OREPA}'").to_dict("records")
    assert (row["value"], row["low"], row["high"], row["n"], row["kind"]) == (2.0, 2.0, 2.0, 1, "close")
    samples = run.samples().query(f"cell == '{OREPA}'")
    assert tuple(samples["value"]) == STORED
    assert list(samples["sample"]) == [0, 1, 2, 3]


def test_a_baseline_keeps_every_value_to_nine_digits(tmp_path):
    values = (1 / 3, -2 / 3, float("nan"), 12345.678912345)
    write_baseline(make_baseline(close_run(values)), tmp_path / "b.json")
    read = load_baseline(tmp_path / "b.json")
    kept = read["cells"][OREPA]["readings"]["fused_output/fused"]
    assert kept["values"] == [0.333333333, -0.666666667, None, 12345.6789]
    assert "values" not in make_baseline(full_run())["cells"][CONV]["readings"]["fusion_error"]
    assert rows_of(values, read)[OREPA].verdict is Verdict.REGRESSED, "not a number is close to nothing"
    assert rows_of(values, read)[CONV].verdict is Verdict.SAME


def test_a_close_reading_without_its_values_is_a_damaged_baseline(tmp_path):
    path = tmp_path / "b.json"
    write_baseline(BASELINE, path)
    path.write_text(path.read_text().replace('"values"', '"value_"'))
    with pytest.raises(HarnessError, match="not a readable baseline"):
        load_baseline(path)


def test_a_changed_output_fails_its_own_row_only():
    rows = rows_of(moved(3, 0.01))
    assert (rows[CONV].verdict, rows[OREPA].verdict) == (Verdict.SAME, Verdict.REGRESSED)
    assert (rows[OREPA].before, rows[OREPA].now, rows[OREPA].kind) == (0.0, 0.01, "close")
    assert check(close_run(moved(3, 0.01)), BASELINE).exit_code == 1
    assert check(close_run(), BASELINE, strict=True).exit_code == 0


def test_the_suites_limit_is_the_tolerance():
    gates = {"fused_output": {"limit": 0.02}}
    assert rows_of(moved(3, 0.01), gates=gates)[OREPA].verdict is Verdict.SAME
    assert rows_of(moved(3, 1e-6), gates={"fused_output": {"limit": 0.0}})[OREPA].verdict is Verdict.REGRESSED
    ungated = check(close_run(moved(3, 1.0), gates={"fused_output": {"gate": False}}), BASELINE)
    assert (ungated.counts[Verdict.REGRESSED], ungated.exit_code) == (1, 0)


def test_of_a_reading_that_was_repeated_the_last_counts():
    run = close_run(moved(0, 1.0)).close(OREPA, STORED)
    assert check(run, BASELINE).exit_code == 0
    assert len(run.frame().query(f"cell == '{OREPA}'")) == 1


def test_blocks_are_not_compared_with_each_other_by_what_they_compute():
    run = close_run(moved(0, 1.0))
    assert comparisons(run.cells, run.rounds()).empty


def test_a_table_shows_the_first_value_and_says_so():
    (table,) = tables(views(close_run(moved(0, 0.5)))[0])
    (column,) = table.columns
    assert table.title == TITLES[Theme.EXACT]
    assert (column.heading, column.cells) == (("fused output", "[first value]"), ("2", "2.500"))


# every failing row names the block, the metric, both values and the command


def failing(kind: str) -> tuple[Check, str, str, str]:
    """A check whose only failing row is orepa's, of this kind; the reading's name and both values as printed."""
    rng = np.random.default_rng(0)
    runs = [FakeRun(cells_frame([cell("conv"), cell("orepa")])) for _ in range(2)]
    if kind == "close":
        runs = [close_run(), close_run(moved(3, 0.0012345))]
        shown = "fused_output (fused)", "0", "0.0012345"
    elif kind == "count":
        runs = [run.put(CONV, "params", 5).put(OREPA, "params", n) for run, n in zip(runs, (36992, 36993), strict=True)]
        shown = "params", "36,992", "36,993"
    elif kind == "bounded":
        values = zip(runs, (3e-7, 5.04e-6), strict=True)
        runs = [run.put(CONV, "fusion_error", 1e-7).put(OREPA, "fusion_error", value) for run, value in values]
        shown = "fusion_error", "3e-07", "5.04e-06"
    else:
        values = zip(runs, (1.4, 2.8), strict=True)
        runs = [
            run.put(CONV, "latency", noisy(1, rng, sd=0), "train").put(OREPA, "latency", noisy(f, rng, sd=0), "train")
            for run, f in values
        ]
        shown = "latency (train)", "1.400 x reference", "2.800 x reference"
    return check(runs[1], make_baseline(runs[0])), *shown


@pytest.mark.parametrize("kind", ["count", "bounded", "close", "sampled"])
def test_a_failing_row_in_text_says_all_one_needs(kind):
    result, name, before, now = failing(kind)
    lines = render_check(result).splitlines()
    (row,) = [line for line in lines if line.startswith("REGRESSED")]
    assert [part for part in (" orepa ", f" {name} ", f" {before} ", f" {now} ") if part not in row] == []
    assert f"repeat orepa: harness run suites/quick.yaml --only {OREPA}" in lines
    assert lines[-1].endswith("exit 1")


@pytest.mark.parametrize("kind", ["count", "bounded", "close", "sampled"])
def test_a_failing_row_on_github_says_all_one_needs(kind):
    result, name, before, now = failing(kind)
    (line,) = [line for line in render_check(result, "github").splitlines() if line.startswith("::")]
    title, _, message = line.removeprefix("::error title=").partition("::")
    assert title == f"REGRESSED%3A orepa%3A {name}"
    assert message.startswith(f"orepa: {name}: {before} -> {now}")
    assert message.endswith(f"%0Arepeat: harness run suites/quick.yaml --only {OREPA}")


@pytest.mark.parametrize("kind", ["count", "bounded", "close", "sampled"])
def test_a_failing_row_in_json_says_all_one_needs(kind):
    result, name, _, _ = failing(kind)
    value = json.loads(render_check(result, "json"), parse_constant=pytest.fail)
    (row,) = [row for row in value["rows"] if row["verdict"] == "REGRESSED"]
    assert (row["label"], row["kind"], row["cell"]) == ("orepa", kind, OREPA)
    assert name.startswith(row["metric"])
    assert row["before"] != row["now"]
    assert row["command"] == f"harness run suites/quick.yaml --only {OREPA}"


def test_no_failing_row_is_left_out_and_each_cells_command_is_there():
    regressed = tuple(Row(f"c{i}", f"b{i}", "g", "m", "", Verdict.REGRESSED, command=f"run c{i}") for i in range(50))
    printed = render_check(Check("run", "suite", regressed, {}))
    assert all(f"  b{i} " in printed and f"repeat b{i}: run c{i}\n" in printed for i in range(50))
    undecided = tuple(Row(f"c{i}", f"b{i}", "g", "m", "", Verdict.INCONCLUSIVE, command="run") for i in range(50))
    assert "and 20 more" in render_check(Check("run", "suite", undecided, {}))
    assert "and 20 more" not in render_check(Check("run", "suite", undecided, {}, strict=True)), "these fail it"
