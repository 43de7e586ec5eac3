"""What no test noticed when it was broken on purpose (tests/mutations/): each is a promise that the code makes."""

from __future__ import annotations

import os

import numpy as np
import pytest
from synthetic_run import CONV, OREPA, FakeRun, cell, cells_frame

from harness.errors import HarnessError
from harness.planning import plan
from harness.records import Fingerprint, Record, Status, TaskKind
from harness.report.cell_text import _few
from harness.report.row_text import repeats
from harness.store.directory import choose, describe
from harness.store.journal import Journal
from harness.store.locks import exclusive
from harness.units import as_bytes, as_seconds, duration, scale_for
from harness.verdict.against_baseline import check
from harness.verdict.baseline import make_baseline
from harness.verdict.rows import Check, Row
from harness.verdict.rules import Paired, Verdict, judge_bounded, judge_paired
from harness.verdict.trend.change_points import Noise

RECORD = Record("task", TaskKind.CELL, "cell", "params", 0, "fingerprint", Status.OK)


def test_a_record_is_on_the_disk_before_append_returns(tmp_path, monkeypatch):
    """Without fsync the last minutes of a run are lost with the machine, though append has returned."""
    done = []
    write, sync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda file, line: done.append("write") or write(file, line))
    monkeypatch.setattr(os, "fsync", lambda file: done.append("sync") or sync(file))
    book = Journal(tmp_path / "journal.jsonl")
    for _ in range(2):
        book.append(RECORD)
    book.close()
    assert done == ["write", "sync"] * 2


def test_a_line_that_the_disk_took_in_part_is_an_error(tmp_path, monkeypatch):
    """A full disk may take half of a write and raise nothing; the record is not there then."""
    book = Journal(tmp_path / "journal.jsonl")
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:-5]))
    with pytest.raises(HarnessError, match="bytes were written"):
        book.append(RECORD)
    book.close()


def test_only_one_can_hold_a_lock(tmp_path):
    """Two runs at once would spoil each other's times, or write into one journal."""

    def hold(note):
        return exclusive(tmp_path / "run.lock", note, busy="taken", remedy="wait")

    with hold("the first"), pytest.raises(HarnessError, match=r"taken .*the first"), hold("the second"):
        pass
    with hold("the next"):
        pass


def test_what_failed_is_owed_again_only_when_it_is_asked_for(suite_of, tmp_path):
    """A run that goes on would else spend its time on what fails for good."""
    planned = plan(suite_of("axes: {block: conv, backbone: layer}\nmetrics: params"))
    meta = describe(planned, Fingerprint("s", {}, {}), {}, suite_text="", suite_path="", overrides=())
    run, _ = choose(meta, out=tmp_path / "run", new=False, retry=False)
    (task,) = planned.tasks
    record = Record(task.key, task.kind, task.cells[0].id, "params", 0, "s", Status.ERROR, reason="it broke")
    assert run.open_work([record]) == {}
    assert run.open_work([record], retry=True) == {task.key: {(record.cell, "params")}}


def test_nothing_has_regressed_whose_interval_reaches_to_no_change():
    """p against a small threshold may pass 5 % where the 99 % interval still holds 1."""
    unsure, sure = ((0.03, 0.01 * 10**0.5 / narrower, 10) for narrower in (1.0, 2.0))
    answers = judge_paired([Paired(unsure, "lower", 0.001)], 0.99) + judge_paired([Paired(sure, "lower", 0.001)], 0.99)
    assert [answer.low < 1 for answer in answers] == [True, False]
    assert [answer.verdict for answer in answers] == [Verdict.INCONCLUSIVE, Verdict.REGRESSED]


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_what_is_at_its_limit_is_within_it(better):
    """A limit is the largest value that passes: a count of 0 with the limit 0 does."""
    assert judge_bounded(0.5, 0.5, better, 0.5)[0] is Verdict.SAME
    assert judge_bounded(0.0, 0.0, better, 0.0)[0] is Verdict.SAME


def test_the_noise_of_a_series_is_that_of_its_values_and_not_of_their_differences():
    """Twice the variance would hide steps, and is made good only where a first step is found all the same."""
    values = np.random.default_rng(3).normal(0, 0.02, 4000)
    assert Noise.of_differences(values, 1e-4).sd == pytest.approx(0.02, rel=0.05)
    assert Noise.around(values, [2000], 1e-4).sd == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1KiB", 1024),
        ("1.5MiB", 1_572_864),
        ("24GiB", 25_769_803_776),
        ("500 MB", 500_000_000),
        ("7B", 7),
        ("2GB", 2e9),
    ],
)
def test_amounts_of_memory_are_read_with_their_units(text, amount):
    """A limit of memory that is a fourteenth too small or too large kills what should run, or nothing."""
    assert as_bytes(text) == amount


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("30s", 30), ("1.5m", 90), ("10m", 600), ("2h", 7200)])
def test_times_are_read_with_their_units(text, seconds):
    assert as_seconds(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(89, "89 s"), (90, "2 min"), (3500, "58 min"), (3700, "1 h 2 min"), (90_000, "25 h 0 min")]
)
def test_durations_are_told_in_two_units_at_most(seconds, text):
    assert duration(seconds) == text


def test_a_columns_unit_is_that_of_its_middle_value():
    """One small value must not turn the others into numbers of seven digits, one large one not into 0.00something."""
    assert scale_for("s", [2e-6, 0.02, 0.03]).name == "ms"
    assert scale_for("s", [0.02, 0.03, 40.0]).name == "ms"


def test_what_fails_a_strict_check_is_told_how_to_repeat():
    """An undecided reading fails under --strict: its command is what the reader wants next."""
    rows = (
        Row("a", "dbb", "group", "latency", "train", Verdict.INCONCLUSIVE, command="measure a"),
        Row("b", "acb", "group", "latency", "train", Verdict.SAME, command="measure b"),
    )
    assert repeats(Check("run", "suite", rows, {}, strict=True)) == {"measure a": "dbb"}
    assert repeats(Check("run", "suite", rows, {})) == {}


def test_of_many_samples_the_first_and_the_last_are_shown():
    """A drift shows in them; what is shown twice, or from the middle, hides it."""
    assert _few([str(number) for number in range(20)]) == "0 1 2 3 ... 16 17 18 19 (20)"
    assert _few([str(number) for number in range(20)], 6) == "0 1 2 ... 17 18 19 (20)"
    assert _few(["1", "2"]) == "1 2"


def test_the_plain_convolution_is_what_others_are_held_against_wherever_it_stands(suite_of):
    """And the first value where there is none."""
    for written, expected in (("[repvgg, acb, conv]", "conv"), ("[repvgg, acb]", "repvgg")):
        (group,) = plan(suite_of(f"axes: {{block: {written}, backbone: layer}}\nmetrics: params")).groups
        assert [cell.block.name for cell in group.cells if cell.id == group.reference] == [expected]
    (group,) = plan(suite_of("axes: {block: conv, backbone: layer}\nmetrics: params")).groups
    assert group.reference is None, "alone in its group"


@pytest.mark.parametrize("side", ["c_in", "c_out"])
def test_groups_must_divide_both_sides_of_a_layer(suite_of, side):
    """The plan says so, and not a worker that has been started for it."""
    wanted = {"c_in": 8, "c_out": 8, "groups": 4, side: 6}
    options = ", ".join(f"{name}: {value}" for name, value in wanted.items())
    with pytest.raises(HarnessError, match=f"{side} 6 is not a multiple of groups 4"):
        plan(suite_of(f"axes: {{block: conv, backbone: {{layer: {{{options}}}}}}}\nmetrics: params"))


def test_a_number_is_no_truth_in_a_suite(suite_of):
    """1 == True in Python; the block itself would refuse it, in a worker."""
    with pytest.raises(HarnessError, match="origin of orepa: 1 is not one of its values"):
        suite_of("axes: {block: {orepa: {origin: 1}}, backbone: layer}\nmetrics: params")


def test_of_a_share_and_an_amount_that_are_allowed_the_larger_counts():
    """Of a number that was zero no share is anything: the gate's floor is what may be added to it."""

    def changed(*numbers):
        run = FakeRun(cells_frame([cell("conv"), cell("orepa")]), gates={"changed_predictions": {"floor": 5.0}})
        return run.put(CONV, "changed_predictions", [1] * 4, "fused").put(
            OREPA, "changed_predictions", numbers, "fused"
        )

    none = make_baseline(changed(0, 0, 0, 0))
    assert check(changed(2, 3, 2, 3), none, strict=True).exit_code == 0
    assert check(changed(12, 13, 12, 13), none).exit_code == 1
