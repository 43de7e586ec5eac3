"""`harness trend` over folders of runs, written as a run writes them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import pytest

from harness.errors import HarnessError
from harness.planning import plan
from harness.records import Fingerprint, Kind, Reading, Record, Status, TaskKind
from harness.report.trend_text import render_trend
from harness.store.directory import describe
from harness.verdict.baseline import ReadingSummary
from harness.verdict.rules import Gate, Verdict
from harness.verdict.trend.annotations import accept, load_annotations
from harness.verdict.trend.history import History, PastRun, Series
from harness.verdict.trend.judging import changes_in, trend

MACHINE = {"threads": 2, "cpu": {"model": "Some CPU"}}
START = datetime(2026, 1, 1, tzinfo=UTC)
SUITE = """
axes: {block: [conv, repvgg, orepa], backbone: layer}
metrics: [params, train_step]
budget: {rounds: 4}
"""
PARAMS = {"conv": 1000, "repvgg": 2000, "orepa": 3000}


@pytest.fixture
def days(tmp_path, suite_of):
    """Writes one run a day into a folder; each run is told in what it differs."""
    return Days(tmp_path / "runs", suite_of)


class Days:
    def __init__(self, folder, suite_of):
        self.folder, self.number, self.rng = folder, 0, np.random.default_rng(0)
        self.planned = cache(lambda gates: plan(suite_of(SUITE, gates)))

    def add(self, times=None, params=None, machine=MACHINE, torch="2.14.1", gates="", rounds=4):
        """`times` multiplies a block's seconds, `params` are parameters in place of `PARAMS`; the run's name."""
        planned = self.planned(gates)
        prints = Fingerprint(f"source{self.number // 10}", {"torch": torch}, machine)
        meta = describe(planned, prints, {}, suite_text=SUITE, suite_path="suites/small.yaml", overrides=())
        meta["started"] = (START + timedelta(days=self.number)).isoformat(timespec="seconds")
        path = self.folder / f"day-{self.number:02}"
        path.mkdir(parents=True)
        (path / "run.json").write_text(json.dumps(meta))
        records = [
            self._record(task, cell, prints.id, times or {}, {**PARAMS, **(params or {})})
            for task in planned.tasks
            for cell in task.cells
            if task.round < rounds
        ]
        (path / "journal.jsonl").write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))
        self.number += 1
        return path.name

    def _record(self, task, cell, fingerprint, times, params):
        block = cell.block.name
        if task.kind is TaskKind.CELL:
            metric, reading = "params", Reading("params", "train", "1", (params[block],))
        else:
            seconds = 0.01 * PARAMS[block] / 1000 * times.get(block, 1.0) * math.exp(self.rng.normal(0, 0.02))
            metric, reading = "train_step", Reading("train_step", "train", "s", (seconds,))
        return Record(task.key, task.kind, cell.id, metric, task.round, fingerprint, Status.OK, (reading,))

    def annotate(self, text):
        path = self.folder / "annotations.yaml"
        path.write_text(text)
        return path


def slower_from(days, place, runs=12):
    for day in range(runs):
        days.add({"orepa": 1.15 if day >= place else 1.0})


@pytest.fixture(scope="module")
def found(tmp_path_factory, suite_of):
    """What `trend` finds in sixteen runs, of which orepa is 15 % slower from the tenth on (day-09): read once."""
    days = Days(tmp_path_factory.mktemp("slower"), suite_of)
    slower_from(days, 9, runs=16)
    return trend(days.folder)


@pytest.fixture
def annotated(tmp_path):
    """Writes annotations into a file of the test's own."""

    def write(text):
        path = tmp_path / "annotations.yaml"
        path.write_text(text)
        return path

    return write


def test_a_slower_block_is_found_between_its_runs_and_fails(found):
    (change,) = found.changes
    assert (change.label, change.metric, change.verdict, change.fails) == (
        "orepa",
        "train_step",
        Verdict.REGRESSED,
        True,
    )
    assert (found.runs[change.before].name, found.runs[change.after].name) == ("day-08", "day-09")
    assert change.low < 1.15 < change.high
    assert change.level_after == pytest.approx(3 * 1.15, rel=0.03)
    assert change.command == f"harness run suites/small.yaml --only {change.cell} --new"
    assert found.exit_code == 1


def test_steady_runs_raise_no_alarm(days):
    slower_from(days, 99)
    result = trend(days.folder)
    assert result.changes == ()
    assert (result.judged, result.exit_code) == (6, 0)


def test_a_faster_block_fails_nothing_and_another_version_of_torch_is_named_as_what_else_changed(days):
    for day in range(12):
        days.add({"orepa": 0.8 if day >= 6 else 1.0}, torch="2.15.0" if day >= 6 else "2.14.1")
    result = trend(days.folder)
    (change,) = result.changes
    assert change.verdict is Verdict.IMPROVED
    assert "torch 2.14.1 -> 2.15.0" in change.reason
    assert result.exit_code == 0


def test_a_sure_step_within_the_suites_threshold_is_told_and_fails_nothing(found):
    series = tuple(replace(one, gate=Gate(threshold=0.5)) for one in found.history.series)
    (change,) = changes_in(replace(found.history, series=series))
    assert (change.verdict, change.fails) == (Verdict.SAME, False)
    assert "within the threshold of 50 %" in change.reason


def test_a_quantity_without_a_gate_fails_nothing(days):
    for day in range(3):
        days.add(params={"orepa": 3000 + day}, gates="gates: {params: {gate: false}}")
    result = trend(days.folder)
    assert [change.verdict for change in result.changes] == [Verdict.REGRESSED] * 2
    assert result.exit_code == 0


def test_a_reference_that_takes_half_as_long_again_is_an_absolute_time_that_fails_and_a_mood_is_told(days):
    for day in range(12):
        days.add(dict.fromkeys(PARAMS, 1.7 if day >= 6 else 1.0))
    result = trend(days.folder)
    (change,) = result.changes  # the ratios of the others are as they were
    assert (change.label, change.unit, change.fails) == ("conv", "s", True)
    assert change.ratio == pytest.approx(1.7, rel=0.05)
    (mood,) = changes_in(moved(result.history, 6, math.log(1.3 / 1.7)))  # as if it took a third longer
    assert (mood.label, mood.gated, mood.fails) == ("conv", False, False)
    assert "50 %" in mood.reason


def moved(history, place, log):
    """The history with the logs of absolute times moved by `log` from a run on."""
    series = [
        replace(one, values=tuple(value + log * (i >= place) for i, value in enumerate(one.values)))
        if one.scale == "log"
        else one
        for one in history.series
    ]
    return replace(history, series=tuple(series))


def test_every_change_of_a_count_is_a_change_even_between_two_runs(days):
    for params in (3000, 3001, 3001, 2999):
        days.add(params={"orepa": params})
    result = trend(days.folder)
    assert [(one.verdict, one.level_before, one.level_after) for one in result.changes] == [
        (Verdict.IMPROVED, 3001, 2999), (Verdict.REGRESSED, 3000, 3001),
    ]  # fmt: skip
    assert all(math.isnan(one.low) and math.isnan(one.p) for one in result.changes)
    assert result.exit_code == 1
    assert any("3 timed and other sampled readings have fewer than 6 runs" in note for note in result.notes)


def test_runs_on_another_machine_are_never_joined(days):
    other = {**MACHINE, "cpu": {"model": "Another CPU"}}
    for day in range(12):
        days.add({"orepa": 1.5 if day >= 6 else 1.0}, machine=other if day >= 6 else MACHINE)
    result = trend(days.folder)
    assert result.changes == ()
    assert any("2 machines" in note for note in result.notes)
    assert "Another CPU" in render_trend(result)


def test_interleaved_machines_have_series_of_their_own(days):
    other = {**MACHINE, "cpu": {"model": "Another CPU"}}
    for day in range(20):
        days.add({"orepa": 1.5 if day >= 10 and day % 2 else 1.0}, machine=other if day % 2 else MACHINE)
    (change,) = trend(days.folder).changes
    assert (change.before, change.after) == (9, 11)


def test_what_cannot_be_read_is_named_and_the_rest_judged(days):
    for _ in range(3):
        days.add()
    (days.folder / "day-01" / "run.json").write_text("{")
    (days.folder / "day-xx").mkdir()
    (days.folder / "day-xx" / "run.json").write_text('{"version": 1}')
    with (days.folder / "day-02" / "journal.jsonl").open("a") as journal:
        journal.write("torn")
    result = trend(days.folder)
    assert [run.name for run in result.runs] == ["day-00", "day-02"]
    assert {path.rpartition("/")[2] for path in result.history.unreadable} == {"day-01", "day-xx"}
    assert any("day-02: 1 lines" in note for note in result.notes)
    assert "day-xx" in render_trend(result)


def test_a_run_that_was_stopped_early_is_left_out_of_timed_series_only(days):
    for day in range(8):
        days.add({"orepa": 3.0} if day == 5 else {}, rounds=1 if day == 5 else 4)
    result = trend(days.folder)
    assert any("fewer than half the rounds" in note for note in result.notes)
    lengths = {series.metric: len(series.runs) for series in result.history.series}
    assert lengths == {"params": 8, "train_step": 7}


def test_one_run_is_nothing_to_judge(days):
    days.add()
    assert trend(days.folder).exit_code == 5


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: folder.mkdir()])
def test_a_folder_without_runs_is_an_error_with_a_remedy(tmp_path, make):
    make(tmp_path / "runs")
    with pytest.raises(HarnessError, match="results/runs"):
        trend(tmp_path / "runs")


def test_the_runs_of_several_suites_are_found_one_level_deeper(days):
    for _ in range(2):
        days.add()
    result = trend(days.folder.parent)
    assert len(result.runs) == 2


# many readings


def history_of(*many):
    """One series of a timed ratio for each list of values, in runs that differ in nothing."""
    runs = tuple(
        PastRun(f"day-{i}", f"day-{i}", "small", START.isoformat(), "source", {}, "machine") for i in range(12)
    )
    series = tuple(
        Series(
            f"cell{i}", "orepa", "train_step", "train", Kind.SAMPLED, "lower", "s", "ratio", "conv", "small", "machine",
            Gate(), tuple(range(12)),
            tuple(ReadingSummary(f"cell{i}", "train_step", "train", Kind.SAMPLED, "lower", "s", 0.01) for _ in values), tuple(values),
        )
        for i, values in enumerate(many)
    )  # fmt: skip
    return History(runs, series, {}, {"machine": "Some CPU"}, {}, (), {})


def test_what_is_sure_of_one_reading_is_not_sure_of_the_worst_of_hundreds():
    wave = 0.02 * np.sin(np.arange(12) * 2.0)  # no level changes in it
    weak = wave + 0.055 * (np.arange(12) >= 6)
    (alone,) = changes_in(history_of(weak))
    assert (alone.verdict, 1e-4 < alone.p < 1e-2) == (Verdict.REGRESSED, True)
    (among,) = changes_in(history_of(weak, *[wave] * 200))
    assert among.verdict is Verdict.INCONCLUSIVE
    assert among.fails is False
    several = changes_in(history_of(*[weak] * 100, *[wave] * 101))
    assert {change.verdict for change in several} == {Verdict.REGRESSED}


# annotations


def accepted_of(found, path):
    """The changes of a folder with a file's annotations, as `trend` puts them together, but the runs are read already."""
    return accept(found.changes, load_annotations(path), found.history)


def test_an_accepted_change_is_shown_with_its_reason_and_fails_nothing(found, annotated):
    path = annotated(
        "accepted:\n- {cell: 'block == \"orepa\"', metric: train_step, run: day-09, because: learned scaling}\n"
    )
    result = replace(found, changes=tuple(accepted_of(found, path)))
    assert [change.accepted for change in result.changes] == ["learned scaling"]
    assert result.exit_code == 0
    assert "accepted: learned scaling" in render_trend(result)
    assert "::error" not in render_trend(result, "github")


@pytest.mark.parametrize("run", ["day-08", "day-10", '"2026-01-09T12:00:00Z"', '"2026-01-10"'])
def test_the_run_of_a_timed_change_may_be_a_little_beside_it_or_a_time(found, annotated, run):
    (change,) = accepted_of(found, annotated(f"accepted:\n- {{run: {run}, because: meant}}\n"))
    assert (change.accepted, change.fails) == ("meant", False)


def test_a_later_change_of_the_same_reading_is_not_accepted_with_it(days):
    for day in range(18):
        days.add({"orepa": 1.0 if day < 6 else 1.2 if day < 12 else 1.5})
    days.annotate("accepted:\n- {metric: train_step, run: day-06, because: meant}\n")
    result = trend(days.folder)
    assert [change.accepted for change in result.changes] == ["", "meant"]
    assert result.exit_code == 1


def test_a_change_of_a_count_is_accepted_at_its_own_run_only(days):
    for day in range(6):
        days.add(params={"orepa": 3000 + 10 * (day >= 3)})
    path = days.annotate("accepted:\n- {metric: params, run: day-03, because: meant}\n")
    result = trend(days.folder)
    assert result.exit_code == 0
    path.write_text("accepted:\n- {metric: params, run: day-02, because: meant}\n")
    with pytest.raises(HarnessError, match="they changed in day-03"):
        accepted_of(result, path)


@pytest.mark.parametrize(
    ("entry", "problem", "remedy"),
    [
        ("{run: day-09, because: x, metric: train_stepp}", "train_stepp", "train_step"),
        ("{run: day-09, because: x, form: fussed}", "fussed", "train"),
        ("{run: day-09, because: x, cell: 'block == \"orepaa\"'}", "none of 3 cells", "expression"),
        ("{run: day-09, because: x, cell: 'blok == \"orepa\"'}", "blok", "block"),
        ("{run: day-9, because: x}", "day-9", "day-09"),
        ('{run: "2031-01-01", because: x}', "no run was started", "day-15"),
        ("{run: day-02, because: x}", "changed within 2 runs", "day-09"),
        ("{run: day-09, because: x, metric: params}", "changed within 2 runs", "remove it"),
        ("{run: day-09}", "because is missing", "because"),
        ("{run: day-09, because: ''}", "because", "reason"),
        ("{run: day-09, becuase: x}", "becuase", "because"),
        ("{run: 2026-01-10, because: x}", "timestamp", "quote"),
        ("{run: day-09, because: x, cell: 7}", "cell", "expression"),
    ],
)
def test_an_annotation_that_accepts_nothing_is_an_error_in_its_line_with_a_remedy(
    found, annotated, entry, problem, remedy
):
    path = annotated(f"# accepted by the team\naccepted:\n- {entry}\n")
    with pytest.raises(HarnessError) as caught:
        accepted_of(found, path)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    assert caught.value.where.startswith(f"{path}:3:")


@pytest.mark.parametrize(
    "text", ["", "- {run: day-00, because: x}\n", "acepted: []\n", "accepted: {run: x}\n", "accepted: [\n"]
)
def test_a_file_that_is_no_list_of_annotations_is_an_error(days, text):
    days.add()
    path = days.annotate(text)
    with pytest.raises(HarnessError) as caught:
        trend(days.folder)
    assert str(path) in str(caught.value)
    assert "axes" not in str(caught.value)


def test_a_file_that_was_named_must_be_there(days):
    days.add()
    with pytest.raises(HarnessError, match=r"elsewhere\.yaml"):
        trend(days.folder, days.folder / "elsewhere.yaml")


# in print


def test_the_text_says_where_how_much_how_surely_and_what_to_do(found):
    text = render_trend(found)
    for part in ("REGRESSED", "orepa", "train_step (train)", "2026-01-09T00:00:00 source0", "2026-01-10T00:00:00", "▁",
                 "repeat orepa: harness run", 'run: "day-09"', "6 of 6 readings judged; exit 1"):  # fmt: skip
        assert part in text


def test_json_has_the_series_and_no_nan(days):
    slower_from(days, 3, runs=4)
    value = json.loads(render_trend(trend(days.folder), "json"), parse_constant=pytest.fail)
    (ratio,) = [one for one in value["series"] if one["metric"] == "train_step" and one["label"] == "repvgg"]
    assert ratio["unit"] == "x"
    assert len(ratio["values"]) == len(ratio["runs"]) == len(value["runs"]) == 4
    assert ratio["values"] == pytest.approx([2.0] * 4, rel=0.05)


def test_github_is_told_of_what_fails(found):
    lines = render_trend(found, "github").splitlines()
    assert [line.partition(" ")[0] for line in lines[:1]] == ["::error"]
    assert "REGRESSED%3A orepa" in lines[0]


def test_another_format_is_refused(found):
    with pytest.raises(HarnessError, match="json"):
        render_trend(found, "html")
