"""Sessions with a scripted executor: no process, no torch, and records as a test wants them."""

from __future__ import annotations

from harness.execution.executor import Death, Executor
from harness.execution.session import Session
from harness.execution.stopping import Stopping
from harness.planning import plan
from harness.records import Fingerprint, Reading, Record, Status, TaskKind
from harness.store.directory import choose, describe
from harness.store.journal import Journal

DIED = Death(Status.KILLED, "the worker was ended by SIGKILL", "last words")


class ScriptedExecutor(Executor):
    """Performs tasks as told: `deaths` maps (block, metric) to how many times the process dies there.

    `takes(cell, round)`: what a variant's every sample is then; a second unless told otherwise.
    """

    def __init__(self, deaths=None, refuses=(), takes=lambda cell, round_: 1.0):
        self.deaths = dict(deaths or {})
        self.refuses = set(refuses)
        self.takes = takes
        self.performed = []

    def probe(self, names):
        return {"threads": 1, "torch": "0", "devices": {name: {"absent": None} for name in names}}

    def perform(self, order, emit):
        task = order.task
        self.performed.append((task.round, [c.block.name for c in task.cells], [m.name for m in task.metrics]))
        for metric in task.metrics:
            for cell in task.cells:
                emit({"begin": [cell.id, metric.name]})
                if self.deaths.get((cell.block.name, metric.name), 0) > 0:
                    self.deaths[cell.block.name, metric.name] -= 1
                    return DIED
            for cell in task.cells:
                refused = (cell.block.name, metric.name) in self.refuses
                status = Status.UNSUPPORTED if refused else Status.OK
                readings = () if refused else (Reading(metric.name, "train", "s", (self.takes(cell, task.round),)),)
                about = (order.key, task.kind, cell.id, metric.name, task.round, order.fingerprint)
                emit({"record": Record(*about, status, readings).to_json()})
        return None

    def stop(self):
        return


class SilentWatcher:
    def started(self, task, number): ...

    def recorded(self, record): ...

    def finished(self, task, number): ...


def work(suite, tmp_path, script, absent=None, retry=False):
    """One pass over a suite's open tasks; returns block, metric, round -> status of every record on disk."""
    planned = plan(suite)
    prints = Fingerprint("s", {}, {})
    meta = describe(planned, prints, {}, suite_text="", suite_path="x.yaml", overrides=())
    run, _ = choose(meta, out=tmp_path / "run", new=False, retry=retry)
    journal = Journal(run.path / "journal.jsonl")
    session = Session(
        script, journal, prints.id, SilentWatcher(), Stopping(planned.groups, planned.tasks), absent or {}
    )
    before = run.records()
    session.remember([] if retry else before)
    open_work = run.open_work(before, retry)
    session.work([task for task in planned.tasks if task.key in open_work], open_work)
    journal.close()
    names = {cell.id: cell.block.name for cell in planned.cells}
    return run, {(names[r.cell], r.metric, r.round): r.status for r in run.records() if r.kind is not TaskKind.LOOK}


def looks_in(run):
    """Rounds and rule of every look in a run's journal."""
    return [(r.facts["rounds"], r.facts["rule"]) for r in run.records() if r.kind is TaskKind.LOOK]
