"""Groups that do not fit into memory together, with a scripted executor that has room for so many variants."""

from __future__ import annotations

import json

import pytest
from scripted_session import ScriptedExecutor, looks_in, work

from harness.execution import apart
from harness.execution.executor import Death
from harness.records import Reading, Record, Status, TaskKind

SUITE = "axes: {block: [conv, acb, dbb], backbone: layer}\nmetrics: [latency]\nbudget: {rounds: 4, seconds: 1.0}\n"


class LimitedMemory(ScriptedExecutor):
    """More than `room` variants in one process are too many, and those named in `huge` do not even fit alone.

    Memory runs out as the worker's end, or `reported`: as a record of every variant that the rest left no room for.
    """

    def __init__(self, room=1, huge=(), reported=False, **more):
        super().__init__(**more)
        self.room, self.huge, self.reported = room, set(huge), reported

    def perform(self, order, emit):
        task = order.task
        blocks = [cell.block.name for cell in task.cells]
        self.performed.append((task.round, blocks, task.budget.seconds))
        full = len(blocks) > self.room or self.huge & set(blocks)
        if full and not self.reported:
            emit({"begin": [task.cells[-1].id, "latency"]})
            return Death(Status.OOM, f"{len(blocks)} variants held too much", "last words")
        for i, cell in enumerate(task.cells):
            oom = full and (i >= self.room or cell.block.name in self.huge)
            status, readings = (Status.OOM, ()) if oom else (Status.OK, (self.reading(cell, task.round),))
            record = Record(order.key, task.kind, cell.id, "latency", task.round, order.fingerprint, status, readings,
                            "no room" if oom else "", seconds=1.0)  # fmt: skip
            emit({"record": record.to_json()})
        return None

    def reading(self, cell, round_):
        """Two samples that count up with every process, the second of them suspicious."""
        number = float(len(self.performed))
        facts = {"order": [0, 5], "cpu": [0.1, 0.2], "switches": [0, 3], "repeats": 7, "suspicious": {"1": "slow"}}
        return Reading("latency", "train", "s", (number, number + 0.5), facts)


@pytest.fixture
def suite(suite_of):
    return suite_of(SUITE)


def by_block(run):
    """(block, round) -> record."""
    names = {id_: cell.block.name for id_, cell in run.planned_cells.items()}
    return {(names[r.cell], r.round): r for r in run.records() if r.kind is not TaskKind.LOOK}


THERE_AND_BACK = [["conv"], ["acb"], ["dbb"], ["dbb"], ["acb"], ["conv"]]


@pytest.mark.parametrize("reported", [False, True])
def test_a_group_that_does_not_fit_together_is_redone_variant_by_variant_forward_and_backward(
    suite, tmp_path, reported
):
    script = LimitedMemory(reported=reported)
    run, got = work(suite, tmp_path, script)
    first = [(blocks, seconds) for round_, blocks, seconds in script.performed if round_ == 0]
    assert first == [(["conv", "acb", "dbb"], 1.0), *((blocks, 0.5) for blocks in THERE_AND_BACK)]
    assert set(got.values()) == {Status.OK}
    assert len(got) == 3 * 4
    assert run.finished


def test_later_rounds_go_apart_at_once_in_their_own_rotated_order(suite, tmp_path):
    script = LimitedMemory()
    work(suite, tmp_path, script)
    second = [blocks for round_, blocks, _ in script.performed if round_ == 1]
    assert second == [["acb"], ["dbb"], ["conv"], ["conv"], ["dbb"], ["acb"]]
    assert len(script.performed) == 1 + 4 * 6


def test_the_record_says_that_processes_alternated_and_why(suite, tmp_path):
    run, _ = work(suite, tmp_path, LimitedMemory())
    for record in by_block(run).values():
        assert record.facts == {"alternation": "processes", "because": "3 variants held too much"}
    tasks = set(run.tasks)
    assert all(record.task in tasks for record in by_block(run).values()), "each is the record that was expected"


def test_the_samples_of_both_halves_are_one_reading_and_what_is_suspicious_keeps_its_sample(suite, tmp_path):
    run, _ = work(suite, tmp_path, LimitedMemory())
    record = by_block(run)["acb", 0]
    (reading,) = record.readings
    assert reading.values == (3.0, 3.5, 6.0, 6.5), "the second and the fifth process after the one that was too full"
    assert reading.facts == {
        "half": [0, 0, 1, 1],
        "cpu": [0.1, 0.2, 0.1, 0.2],
        "switches": [0, 3, 0, 3],
        "repeats": 7,
        "suspicious": {"1": "slow", "3": "slow"},
    }
    assert record.seconds == 2.0


def test_ratios_of_such_rounds_are_those_of_the_rounds_medians(suite, tmp_path):
    run, _ = work(suite, tmp_path, LimitedMemory())
    rounds = run.rounds()
    assert rounds["visits"].isna().all()
    acb = by_block(run)["acb", 0]
    row = rounds[(rounds["cell"] == acb.cell) & (rounds["round"] == 0)].iloc[0]
    assert row["value"] == (3.5 + 6.0) / 2


def test_a_variant_that_does_not_fit_alone_is_out_of_memory_and_the_others_are_measured(suite, tmp_path):
    script = LimitedMemory(huge={"acb"})
    run, got = work(suite, tmp_path, script)
    statuses = {block: [got[block, "latency", i] for i in range(4)] for block in ("conv", "acb", "dbb")}
    assert statuses["acb"] == [Status.OOM, Status.OOM, Status.SKIPPED, Status.SKIPPED]
    for others in (statuses["conv"], statuses["dbb"]):
        assert others == [Status.PARTIAL, Status.PARTIAL, Status.OK, Status.OK], "partial while acb was lost"
    tried = [round_ for round_, blocks, _ in script.performed if blocks == ["acb"]]
    assert tried == [0, 1], "once a round: a first half that failed needs no second"
    record = by_block(run)["acb", 0]
    assert record.reason == "1 variants held too much"
    assert record.facts["alternation"] == "processes"
    assert run.tally() == {"measured": 2, "failed": 1}
    assert len((run.path / "journal.jsonl").read_text().splitlines()) == len(run.records()), "each is written once"


def test_running_out_of_memory_together_is_no_variants_strike(suite, tmp_path):
    run, got = work(suite, tmp_path, LimitedMemory(reported=True))
    assert Status.OOM not in got.values()
    lines = [json.loads(line) for line in (run.path / "journal.jsonl").read_text().splitlines()]
    assert not any(line["status"] == "oom" for line in lines)


def test_a_variant_alone_in_its_group_is_simply_out_of_memory(suite_of, tmp_path):
    script = LimitedMemory(huge={"conv"})
    run, got = work(suite_of("axes: {block: conv, backbone: layer}\nmetrics: [latency]\n"), tmp_path, script)
    assert got["conv", "latency", 0] is Status.OOM
    assert "alternation" not in by_block(run)["conv", 0].facts
    assert len(script.performed) == 2


def test_a_death_of_another_kind_does_not_set_a_group_apart(suite, tmp_path):
    script = ScriptedExecutor({("acb", "latency"): 1})
    run, _ = work(suite, tmp_path, script)
    assert not any(apart.reason_in(record) for record in run.records())


def test_a_resumed_run_remembers_that_its_group_does_not_fit(suite, tmp_path):
    whole, _ = work(suite, tmp_path, LimitedMemory())
    journal = whole.path / "journal.jsonl"
    kept = [line for line in journal.read_text().splitlines() if json.loads(line)["round"] < 2]
    journal.write_text("\n".join(kept) + "\n")
    script = LimitedMemory()
    run, got = work(suite, tmp_path, script)
    assert len(script.performed) == 2 * 6
    assert all(len(blocks) == 1 for _, blocks, _ in script.performed), "it is not tried together again"
    assert by_block(run)["dbb", 3].facts["because"] == "3 variants held too much"
    assert set(got.values()) == {Status.OK}


def test_groups_that_fit_stay_together_beside_one_that_does_not(suite_of, tmp_path):
    text = SUITE.replace("backbone: layer", "backbone: layer, kernel_size: [3, 5]")

    class Partly(LimitedMemory):
        def perform(self, order, emit):
            self.room = 3 if order.task.cells[0].kernel_size == 3 else 1
            return super().perform(order, emit)

    script = Partly()
    run, _ = work(suite_of(text), tmp_path, script)
    sizes = {id_: cell.kernel_size for id_, cell in run.planned_cells.items()}
    set_apart = {sizes[record.cell] for record in run.records() if apart.reason_in(record)}
    assert set_apart == {5}
    assert len([blocks for _, blocks, _ in script.performed if len(blocks) == 3]) == 4 + 1
    assert len(looks_in(run)) == 2


def test_of_two_halves_the_worse_status_stands():
    def half(status, reason=""):
        reading = Reading("latency", "train", "s", (1.0,), {"order": [0]})
        readings = (reading,) if status.measured else ()
        return Record("t", TaskKind.VISIT, "c", "latency", 0, "p", status, readings, reason, seconds=1.0)

    partial = apart.joined([half(Status.PARTIAL, "lost dbb"), half(Status.OK)], "too large")
    assert (partial.status, len(partial.readings[0].values)) == (Status.PARTIAL, 2)
    failed = apart.joined([half(Status.OK), half(Status.TIMEOUT, "too slow")], "too large")
    assert (failed.status, failed.reason, failed.readings) == (Status.TIMEOUT, "too slow", ())
    assert apart.reason_in(failed) == "too large"
    assert apart.reason_in(half(Status.OK)) is None
