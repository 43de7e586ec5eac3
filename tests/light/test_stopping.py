"""When a group has been measured enough: looks at synthetic rounds, as a run would feed them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from scripted_session import ScriptedExecutor, looks_in

from harness import execution
from harness.execution.apart import facts as apart
from harness.execution.stopping import GO_ON, Stopping
from harness.planning import plan
from harness.records import Fingerprint, Reading, Record, Status, TaskKind
from harness.store.directory import choose, describe
from harness.store.journal import NAME, Journal
from harness.store.run import SETTLES

SUITE = """
axes: {block: [conv, acb, dbb], backbone: layer, kernel_size: [3, 5]}
metrics: [params, train_step]
"""


@pytest.fixture
def planned(suite_of):
    def make(budget="{rounds: 10, precision: 0.05}", text=SUITE):
        return plan(suite_of(text, f"budget: {budget}\n"))

    return make


def visits(made, group):
    """A group's rounds, in their order."""
    return [t for t in made.tasks if t.kind is TaskKind.VISIT and t.cells[0].id in {cell.id for cell in group.cells}]


def readings(task, ratios, order=True):
    """(cell, values) of one round: the reference takes a second, the others as `ratios` has it by block."""
    for cell in task.cells:
        values = ratios.get(cell.block.name, 1.0)
        values = tuple(values) if isinstance(values, list) else (values, values)
        yield cell, Reading("train_step", "train", "s", values, {"order": list(range(len(values)))} if order else {})


def measure(stopping, task, ratios, seconds=1.0, failed=(), order=True, **more):
    """Let `stopping` learn a round; returns its records."""
    records = [
        Record(task.key, task.kind, cell.id, "train_step", task.round, "print", Status.OK, (reading,), seconds=seconds)
        for cell, reading in readings(task, ratios, order)
    ]
    names = {cell.id: cell.block.name for cell in task.cells}
    gone = [replace(r, status=Status.OOM, readings=()) if names[r.cell] in failed else r for r in records]
    gone = [replace(record, **more) for record in gone]
    for record in gone:
        stopping.learn(record)
    return gone


def play(made, group, ratios, **more):
    """Measure and look, round by round, until a look settles the rest; returns all looks and `stopping`."""
    stopping, found = Stopping(made.groups, made.tasks), []
    for task in visits(made, group):
        if stopping.settled(task):
            break
        measure(stopping, task, ratios(task.round) if callable(ratios) else ratios, **more)
        look = stopping.look(task, "print")
        if look is not None:
            stopping.learn(look)
            found.append(look)
    return found, stopping


def noisy(spread, seed=0):
    """Ratios by round whose logs scatter by `spread`; acb is in truth 1.2 times the reference, dbb 1.5 times."""
    draws = np.random.default_rng(seed).normal(0, spread, (100, 2))
    return lambda number: {"acb": 1.2 * math.exp(draws[number, 0]), "dbb": 1.5 * math.exp(draws[number, 1])}


def rules(found):
    return [(look.facts["rounds"], look.facts["rule"]) for look in found]


def test_a_group_whose_ratios_are_known_well_is_done_at_the_first_look(planned):
    made = planned()
    found, _ = play(made, made.groups[0], noisy(0.0005))
    assert rules(found) == [(4, "precision")]


def test_a_group_that_scatters_is_looked_at_four_times_and_goes_on_to_its_last_round(planned):
    made = planned()
    found, _ = play(made, made.groups[0], noisy(0.5))
    assert rules(found) == [(4, GO_ON), (6, GO_ON), (8, GO_ON), (10, "rounds")]
    assert not any(look.facts[SETTLES] for look in found)


def test_a_group_goes_on_until_its_widest_ratio_is_narrow_enough(planned):
    made = planned("{rounds: 10, precision: 0.05}")
    found, _ = play(made, made.groups[0], noisy(0.01, seed=1))
    ends = [look.facts["widest"] for look in found]
    assert found[-1].facts["rule"] == "precision"
    assert 4 < found[-1].facts["rounds"] < 10
    assert ends[-1] <= 0.05 < min(ends[:-1])


def test_without_a_wanted_precision_there_is_one_look_and_its_rule_is_the_rounds(planned):
    made = planned("{rounds: 6, precision: null}")
    found, _ = play(made, made.groups[0], {"acb": 1.2})
    assert rules(found) == [(6, "rounds")]


def test_the_seconds_end_a_group_but_never_before_four_rounds(planned):
    made = planned("{rounds: 10, precision: 0.001, group_time: 10}")
    found, _ = play(made, made.groups[0], noisy(0.1), seconds=20.0)
    assert rules(found) == [(4, "seconds")]
    found, _ = play(made, made.groups[0], noisy(0.1), seconds=2.0)
    assert rules(found) == [(4, GO_ON), (5, "seconds")], "also between two looks"
    assert found[-1].facts["seconds"] == 10.0, "variants are measured during the same seconds"


def test_variants_that_are_measured_apart_spend_the_groups_seconds_one_after_the_other(planned):
    made = planned("{rounds: 10, precision: 0.001, group_time: 30}")
    found, _ = play(made, made.groups[0], noisy(0.1), seconds=2.0, facts=apart("too large"))
    assert rules(found) == [(4, GO_ON), (5, "seconds")]
    assert found[-1].facts["seconds"] == 3 * 5 * 2.0


def test_seconds_of_a_round_that_is_measured_again_are_not_counted_twice(planned):
    made = planned("{rounds: 10, precision: 0.001, group_time: 9}")
    stopping = Stopping(made.groups, made.tasks)
    for task in visits(made, made.groups[0])[:4]:
        measure(stopping, task, {}, seconds=2.0)
        measure(stopping, task, {"acb": 1.0 + task.round}, seconds=2.0)
        look = stopping.look(task, "print")
    assert look.facts["seconds"] == 8.0


def test_the_last_look_settles_exactly_the_later_rounds_of_its_group(planned):
    made = planned()
    (mine, other) = made.groups
    found, stopping = play(made, mine, noisy(0.0005))
    later = [task.key for task in visits(made, mine)[4:]]
    assert len(later) == 6
    assert found[0].facts[SETTLES] == later
    assert {task.key for task in made.tasks if stopping.settled(task)} == set(later)
    assert not any(stopping.settled(task) for task in visits(made, other))


def test_between_two_looks_and_after_clockless_metrics_nothing_is_written(planned):
    made = planned()
    stopping = Stopping(made.groups, made.tasks)
    for task in visits(made, made.groups[0]):
        measure(stopping, task, noisy(0.5)(task.round))
        assert (stopping.look(task, "print") is not None) == (task.round + 1 in (4, 6, 8, 10))
    assert stopping.look(next(task for task in made.tasks if task.kind is TaskKind.CELL), "print") is None


def test_widths_are_those_of_scipys_t_interval_with_the_error_shared_among_four_looks(planned):
    made = planned("{rounds: 10, precision: 0.0001}")
    group, ratios = made.groups[1], noisy(0.03, seed=3)
    (first, *_), _ = play(made, group, ratios)
    names = {cell.block.name: cell.id for cell in group.cells}
    assert set(first.facts["widths"]) == {f"{names[block]}/train_step/train" for block in ("acb", "dbb")}
    for block in ("acb", "dbb"):
        logs = np.log([ratios(number)[block] for number in range(4)])
        low, high = stats.t.interval(1 - 0.01 / 4, df=3, loc=logs.mean(), scale=stats.sem(logs))
        width = first.facts["widths"][f"{names[block]}/train_step/train"]
        assert width == pytest.approx(np.exp(high) / np.exp(low) - 1, abs=1e-6)
    assert first.facts["widest"] == pytest.approx(max(first.facts["widths"].values()), abs=1e-6)
    assert (first.kind, first.cell, first.round, first.fingerprint) == (TaskKind.LOOK, group.id, 3, "print")


def test_ratios_are_of_passes_where_variants_took_turns_and_of_medians_where_not(planned):
    made = planned()
    task = visits(made, made.groups[0])[0]
    names = {cell.block.name: cell.id for cell in task.cells}
    values = {"conv": [1.0, 4.0, 4.1], "acb": [2.0, 2.0, 8.2]}
    for order, expected in ((True, math.log(2)), (False, math.log(2 / 4))):
        stopping = Stopping(made.groups, made.tasks)
        measure(stopping, task, values, order=order)
        logs = stopping.log_ratios(made.groups[0])
        assert logs[names["acb"], "train_step", "train"] == pytest.approx([expected])
        assert (names["conv"], "train_step", "train") not in logs


def test_a_variant_that_never_gave_a_number_does_not_keep_its_group_going(planned):
    made = planned()
    found, _ = play(made, made.groups[0], noisy(0.0005), failed=["dbb"])
    assert rules(found) == [(4, "precision")]


def test_a_variant_that_has_been_left_out_is_not_waited_for(planned):
    made = planned()
    stopping, found = Stopping(made.groups, made.tasks), []
    for task in visits(made, made.groups[0]):
        measure(stopping, task, noisy(0.0005)(task.round), failed=["dbb"] if task.round else [])
        found.append(stopping.look(task, "print"))
    looked = [look for look in found if look]
    assert rules(looked)[0] == (4, "precision")
    (acb,) = [cell.id for cell in made.groups[0].cells if cell.block.name == "acb"]
    assert list(looked[0].facts["widths"]) == [f"{acb}/train_step/train"]


def test_three_ratios_are_too_few_however_narrow(planned):
    made = planned()
    stopping, found = Stopping(made.groups, made.tasks), []
    for task in visits(made, made.groups[0]):
        measure(stopping, task, noisy(0.0005)(task.round), failed=["dbb"] if task.round == 0 else [])
        found.append(stopping.look(task, "print"))
    looked = [look for look in found if look]
    assert rules(looked)[:2] == [(4, GO_ON), (6, "precision")]
    assert looked[0].facts["widest"] is None
    assert None in looked[0].facts["widths"].values()


@pytest.mark.parametrize("failed", [["conv"], ["conv", "acb", "dbb"]])
def test_a_group_without_its_reference_has_nothing_to_be_precise_about_and_ends_with_its_rounds(planned, failed):
    made = planned()
    found, _ = play(made, made.groups[0], {}, failed=failed)
    assert rules(found)[-1] == (10, "rounds")
    assert all(look.facts["widths"] == {} and look.facts["widest"] is None for look in found)


def test_a_group_that_was_planned_without_a_reference_ends_with_its_rounds_or_seconds(planned):
    alone = "axes: {block: conv, backbone: layer}\nmetrics: [train_step]\n"
    made = planned("{rounds: 5}", alone)
    assert made.groups[0].reference is None
    assert rules(play(made, made.groups[0], {})[0]) == [(4, GO_ON), (5, "rounds")]
    made = planned("{rounds: 5, group_time: 1}", alone)
    assert rules(play(made, made.groups[0], {})[0]) == [(4, "seconds")]


def test_what_was_learned_from_a_journal_is_not_looked_at_again(planned):
    made = planned()
    group = made.groups[0]
    found, _ = play(made, group, noisy(0.0005))
    again = Stopping(made.groups, made.tasks)
    for task in visits(made, group)[:4]:
        measure(again, task, noisy(0.0005)(task.round))
    again.learn(Record.from_json(found[0].to_json()))
    assert again.look(visits(made, group)[3], "print") is None
    assert all(again.settled(task) for task in visits(made, group)[4:])
    assert again.look(visits(made, group)[5], "print") is None


def test_a_run_owes_nothing_of_what_a_look_in_its_journal_has_settled(planned, tmp_path):
    made = planned()
    meta = describe(made, Fingerprint("s", {}, {}), {}, suite_text="", suite_path="", overrides=())
    run, _ = choose(meta, out=tmp_path / "run", new=False, retry=False)
    journal = Journal(run.path / NAME)
    found, _ = play(made, made.groups[0], noisy(0.0005))
    assert set(run.open_work()) == {task.key for task in made.tasks}
    journal.append(found[0])
    journal.close()
    assert {task.key for task in made.tasks} - set(run.open_work()) == set(found[0].facts[SETTLES])
    assert run.records()[0] == Record.from_json(found[0].to_json()), "facts and rule survive the journal"


class DyingOnce(ScriptedExecutor):
    """A scripted executor in which acb dies once in the round `dies_in`."""

    dies_in = None

    def perform(self, order, emit):
        task = order.task
        self.deaths = {("acb", "latency"): int(task.round == self.dies_in and len(task.cells) > 1)}
        return super().perform(order, emit)


@pytest.fixture
def run_with(planned, monkeypatch, tmp_path):
    """`run_suite` in one directory with a scripted executor, without asking who else is on this machine's cpu."""
    made = planned("{rounds: 10}", "axes: {block: [conv, acb], backbone: layer}\nmetrics: [latency]\n")
    monkeypatch.setattr(execution, "_lock", lambda *_: None)

    def go(script, **more):
        monkeypatch.setitem(execution.EXECUTORS, "script", lambda: script)
        more |= {"out": tmp_path / "run", "executor": "script", "console": Console(quiet=True)}
        return execution.run_suite(made, suite_text="", suite_path="", **more).run

    return go


def test_to_measure_failed_cells_again_does_not_open_the_rounds_that_a_look_has_settled(run_with):
    script = DyingOnce()
    script.dies_in = 3
    run = run_with(script)
    assert looks_in(run) == [(4, "go on"), (6, "precision")]
    again = DyingOnce()
    run = run_with(again, retry=True)
    assert [round_ for round_, _, _ in again.performed] == [3]
    assert looks_in(run) == [(4, "go on"), (6, "precision")]
    assert run.tally() == {"measured": 2}


def test_a_run_that_was_killed_between_a_round_and_its_look_takes_the_look_when_it_goes_on(run_with):
    run = run_with(DyingOnce())
    assert looks_in(run) == [(4, "precision")]
    journal = run.path / NAME
    journal.write_text("".join(line for line in journal.read_text().splitlines(True) if '"look"' not in line))
    again = DyingOnce()
    assert looks_in(run_with(again)) == [(4, "precision")]
    assert again.performed == []
