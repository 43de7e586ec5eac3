"""The loop over tasks with a scripted executor: what is open, what a death is put down to, who is left out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from scripted_session import DIED, ScriptedExecutor, looks_in, work

from harness.errors import HarnessError
from harness.execution.session import check_foreign
from harness.planning import plan
from harness.records import Fingerprint, Record, Status, TaskKind
from harness.store.directory import choose, describe
from harness.store.journal import Journal, read
from harness.store.run import open_run


@pytest.fixture
def suite(suite_of):
    return suite_of(
        "axes: {block: [conv, acb, dbb], backbone: layer}\nmetrics: [params, macs, latency]\nbudget: {rounds: 4}"
    )


def test_everything_that_is_open_is_done_once(suite, tmp_path):
    script = ScriptedExecutor()
    run, got = work(suite, tmp_path, script)
    assert len(got) == 3 * 2 + 3 * 4
    assert set(got.values()) == {Status.OK}
    assert run.finished
    again = ScriptedExecutor()
    work(suite, tmp_path, again)
    assert again.performed == []


def test_a_death_in_a_count_costs_that_metric_alone(suite, tmp_path):
    script = ScriptedExecutor({("acb", "params"): 1})
    _, got = work(suite, tmp_path, script)
    assert got["acb", "params", 0] is Status.KILLED
    assert got["acb", "macs", 0] is Status.OK
    assert (0, ["acb"], ["macs"]) in script.performed


def test_a_death_in_a_round_costs_the_variant_that_round_and_the_group_is_partial(suite, tmp_path):
    _, got = work(suite, tmp_path, ScriptedExecutor({("acb", "latency"): 1}))
    assert [got["acb", "latency", i] for i in range(4)] == [Status.KILLED, *[Status.OK] * 3]
    assert [got["dbb", "latency", i] for i in range(4)] == [Status.PARTIAL, *[Status.OK] * 3]


def test_two_strikes_and_a_variant_is_out(suite, tmp_path):
    script = ScriptedExecutor({("acb", "latency"): 99})
    run, got = work(suite, tmp_path, script)
    assert [got["acb", "latency", i] for i in range(4)] == [Status.KILLED] * 2 + [Status.SKIPPED] * 2
    assert sum("acb" in cells for _, cells, metrics in script.performed if metrics == ["latency"]) == 2
    assert run.tally() == {"measured": 2, "failed": 1}


def test_strikes_are_remembered_by_a_resumed_run(suite, tmp_path):
    work(suite, tmp_path, ScriptedExecutor({("acb", "latency"): 99}))
    journal = tmp_path / "run" / "journal.jsonl"
    kept = [line for line in journal.read_text().splitlines() if not (json.loads(line)["round"] >= 2)]
    journal.write_text("\n".join(kept) + "\n")
    script = ScriptedExecutor({("acb", "latency"): 99})
    _, got = work(suite, tmp_path, script)
    assert got["acb", "latency", 3] is Status.SKIPPED
    assert all("acb" not in cells for _, cells, _ in script.performed)


def test_retry_takes_failed_records_up_again_and_keeps_the_others(suite, tmp_path):
    work(suite, tmp_path, ScriptedExecutor({("acb", "latency"): 2}))
    script = ScriptedExecutor()
    _, got = work(suite, tmp_path, script, retry=True)
    assert got["acb", "latency", 0] is Status.OK
    assert {tuple(cells) for _, cells, _ in script.performed} == {("acb",)}


def test_what_is_unsupported_is_asked_once(suite, tmp_path):
    script = ScriptedExecutor(refuses={("dbb", "latency")})
    run, got = work(suite, tmp_path, script)
    assert {got["dbb", "latency", i] for i in range(4)} == {Status.UNSUPPORTED}
    assert sum("dbb" in cells for _, cells, metrics in script.performed if metrics == ["latency"]) == 1
    assert run.tally()["measured"] == 3


def test_cells_of_an_absent_device_are_skipped_with_the_reason(suite, tmp_path):
    script = ScriptedExecutor()
    run, got = work(suite, tmp_path, script, absent={"cpu": "no such thing"})
    assert set(got.values()) == {Status.SKIPPED}
    assert script.performed == []
    assert run.tally() == {"skipped": 3}
    assert all("no such thing" in record.reason for record in run.records() if record.kind is not TaskKind.LOOK)


def test_a_process_that_ends_without_answers_is_an_error(suite, tmp_path):
    class Mute(ScriptedExecutor):
        def perform(self, order, emit):
            return None

    _, got = work(suite, tmp_path, Mute())
    assert got["conv", "params", 0] is Status.ERROR


def test_a_death_before_anything_was_begun_ends_the_task(suite, tmp_path):
    class DiesAtOnce(ScriptedExecutor):
        def perform(self, order, emit):
            self.performed.append(order.task)
            return DIED

    script = DiesAtOnce()
    _, got = work(suite, tmp_path, script)
    assert got["conv", "macs", 0] is Status.KILLED
    assert got["conv", "latency", 3] is Status.SKIPPED


def scattered(cell, round_):
    """Blocks that differ by another factor of up to five in every round."""
    return 1.0 if cell.block.name == "conv" else 1.0 + (7 * round_ + cell.kernel_size) % 5


TEN_ROUNDS = (
    "axes: {block: [conv, acb], backbone: layer, kernel_size: [3, 5]}\nmetrics: [latency]\nbudget: {rounds: 10}"
)


def test_a_group_that_is_known_well_enough_is_measured_no_further_and_the_others_are(suite_of, tmp_path):
    script = ScriptedExecutor(takes=lambda cell, round_: scattered(cell, round_) if cell.kernel_size == 5 else 1.0)
    run, _ = work(suite_of(TEN_ROUNDS), tmp_path, script)
    assert len(script.performed) == 4 + 10
    assert sorted(looks_in(run)) == [(4, "go on"), (4, "precision"), (6, "go on"), (8, "go on"), (10, "rounds")]
    assert run.finished
    assert run.tally() == {"measured": 4}
    again, before = ScriptedExecutor(), run.records()
    run, _ = work(suite_of(TEN_ROUNDS), tmp_path, again)
    assert (again.performed, run.records()) == ([], before)


def test_a_run_that_was_stopped_and_went_on_looks_at_what_one_that_was_not_looks_at(suite_of, tmp_path):
    whole, _ = work(suite_of(TEN_ROUNDS), tmp_path / "whole", ScriptedExecutor(takes=scattered))
    run, _ = work(suite_of(TEN_ROUNDS), tmp_path / "stopped", ScriptedExecutor(takes=scattered))
    journal = run.path / "journal.jsonl"
    kept = [line for line in journal.read_text().splitlines() if json.loads(line)["round"] < 5]
    journal.write_text("\n".join(kept) + "\n")
    script = ScriptedExecutor(takes=scattered)
    resumed, _ = work(suite_of(TEN_ROUNDS), tmp_path / "stopped", script)
    assert len(script.performed) == 2 * 5
    of = [[(r.task, r.facts["widths"]) for r in one.records() if r.kind is TaskKind.LOOK] for one in (whole, resumed)]
    assert of[0] == of[1]
    assert len(of[0]) == 2 * 4


@pytest.mark.parametrize("damage", ['{"half": ', "[1, 2]", '{"version": 99}', "\x00\x00"])
def test_a_damaged_line_is_passed_over_and_the_rest_is_read(suite, tmp_path, damage):
    run, _ = work(suite, tmp_path, ScriptedExecutor())
    path = run.path / "journal.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, *lines[1:]]))  # and no newline at the end
    assert len(run.records()) == len(lines)
    assert run.damaged == 1
    journal = Journal(path)
    journal.append(next(r for r in read(path) if r))
    journal.close()
    assert sum(r is None for r in read(path)) == 1, "the line that was not ended is whole again"


def test_another_fingerprint_or_suite_is_refused_in_the_same_directory(suite, suite_of, tmp_path):
    work(suite, tmp_path, ScriptedExecutor())
    planned = plan(suite)

    def meta(of, source):
        return describe(of, Fingerprint(source, {}, {}), {}, suite_text="", suite_path="", overrides=())

    with pytest.raises(HarnessError, match="source changed"):
        choose(meta(planned, "t"), out=tmp_path / "run", new=False, retry=False)
    other = plan(suite_of())
    with pytest.raises(HarnessError, match="another suite"):
        choose(meta(other, "s"), out=tmp_path / "run", new=False, retry=False)
    _, resumed = choose(meta(other, "s"), out=tmp_path / "run", new=True, retry=False)
    assert not resumed
    assert len(list(tmp_path.glob("run-before-*"))) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(HarnessError, match="no run of harness"):
        choose(meta(other, "s"), out=tmp_path / "mine", new=False, retry=False)


def test_only_the_newest_unfinished_run_of_the_same_work_is_gone_on_with(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    meta = describe(plan(suite), Fingerprint("s", {}, {}), {}, suite_text="", suite_path="", overrides=())
    first, resumed = choose(meta, out=None, new=False, retry=False)
    assert not resumed
    second, resumed = choose(meta, out=None, new=True, retry=False)
    assert second.path != first.path
    third, resumed = choose(meta, out=None, new=False, retry=False)
    assert resumed
    assert third.path == second.path
    other = describe(plan(suite), Fingerprint("t", {}, {}), {}, suite_text="", suite_path="", overrides=())
    _, resumed = choose(other, out=None, new=False, retry=False)
    assert not resumed
    assert open_run(first.path.parent).path.parent == first.path.parent


def test_records_of_another_fingerprint_are_refused():
    record = Record("t", TaskKind.CELL, "c", "params", 0, "one", Status.OK)
    check_foreign([record], "one")
    with pytest.raises(HarnessError, match="another fingerprint"):
        check_foreign([record, replace(record, fingerprint="two")], "one")


def test_the_frames_say_what_was_measured_and_what_failed(suite, tmp_path):
    run, _ = work(suite, tmp_path, ScriptedExecutor({("acb", "latency"): 99, ("dbb", "params"): 1}))
    cells = run.cells
    assert list(cells["block"]) == ["conv", "acb", "dbb"]
    assert list(cells["reference"]) == [True, False, False]
    acb, dbb = cells.index[1], cells.index[2]
    rounds = run.rounds()
    latency = rounds[(rounds["cell"] == acb) & (rounds["metric"] == "latency")]
    assert set(latency["form"]) == {"train", "fused"}, "a failed metric leaves every column it would have filled"
    assert set(latency["status"]) == {"killed", "skipped"}
    assert latency["value"].isna().all()
    samples = run.samples()
    assert len(samples[(samples["cell"] == dbb) & (samples["metric"] == "latency")]) == 4
    frame = run.frame()
    failed = frame[(frame["cell"] == dbb) & (frame["metric"] == "params")]
    assert set(failed["status"]) == {"killed"}
    measured = frame[(frame["cell"] == dbb) & (frame["metric"] == "latency") & (frame["form"] == "train")].iloc[0]
    assert (measured["value"], measured["n"], measured["unit"]) == (1.0, 4, "s")
    assert {"block", "backbone", "kernel_size", "low", "high", "status"} <= set(frame.columns)
