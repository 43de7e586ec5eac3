"""The paired run of `harness ab`: two revisions of the harness measure one suite side by side, each into its own run.

Both runs are ordinary runs, of the same plan, with the fingerprint of their own source; rounds of groups take turns
visit by visit (lockstep.py), everything else is done by both at once. Looks are at head / base.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import gettempdir

from rich.console import Console

from harness.execution.ab.lockstep import BASE, HEAD, PairedExecutors, PairedStopping
from harness.execution.ab.remote import RemoteExecutor
from harness.execution.ab.worktrees import Revision, checked_out, dependencies_agree, environment_for
from harness.execution.progress import ProgressDisplay
from harness.execution.session import Session, absent_devices
from harness.machine.fingerprint import environment, fingerprint
from harness.planning import Group, Plan
from harness.records import Fingerprint, Json, Record, Task
from harness.store.directory import choose, describe
from harness.store.journal import NAME as JOURNAL
from harness.store.journal import Journal
from harness.store.locks import device_lock, run_lock
from harness.store.run import Run

NAMES = ("base", "head")


@dataclass(frozen=True)
class PairedOutcome:
    """Both revisions' runs, what was measured, and whether it was stopped before the end."""

    runs: tuple[Run, Run]
    revisions: tuple[Revision, Revision]
    interrupted: bool
    notes: tuple[str, ...]


class SharedStopping:
    """The stopping rule that both sides share, as one side's session sees it."""

    def __init__(self, paired: PairedStopping, side: int) -> None:
        self._paired, self._side = paired, side

    def learn(self, record: Record) -> None:
        self._paired.learn_from(self._side, record)

    def settled(self, task: Task) -> bool:
        return self._paired.settled(task)

    def look(self, task: Task, fingerprint: str) -> Record | None:
        return None  # one side alone has nothing to look at

    def group_of_cell(self, cell: str) -> Group | None:
        return self._paired.group_of_cell(cell)


class _RecordWatcher:
    """The watcher of both sides' sessions: shows records alone, one at a time."""

    def __init__(self, display: ProgressDisplay) -> None:
        self._display, self._lock = display, threading.Lock()

    def started(self, task: Task, number: int) -> None:
        return

    def recorded(self, record: Record) -> None:
        with self._lock:
            self._display.recorded(record)

    def finished(self, task: Task, number: int) -> None:
        return


def measure_revisions(
    plan: Plan,
    refs: tuple[str, str],
    *,
    suite_text: str,
    suite_path: str,
    overrides: Sequence[str],
    out: Path,
    stoppable: Callable[[Callable[[], None]], bool],
    console: Console | None = None,
) -> PairedOutcome:
    """Measure `plan` with both revisions; goes on where an earlier call with the same `out` stopped.

    `stoppable` runs the work and says whether it was stopped. HarnessError for what the user can put right.
    """
    console = console or Console(stderr=True)
    with ExitStack() as stack:
        revisions = stack.enter_context(checked_out(refs, Path.cwd()))
        notes = dependencies_agree(revisions[BASE].root, revisions[HEAD].root)
        pythons = [_python(revision, bool(notes), console) for revision in revisions]
        executors = [
            stack.enter_context(RemoteExecutor(revision.root, python))
            for revision, python in zip(revisions, pythons, strict=True)
        ]
        names = list(dict.fromkeys(cell.device.name for cell in plan.cells))
        probes = [executor.probe(names) for executor in executors]
        absent = absent_devices(probes[BASE]) | absent_devices(probes[HEAD])
        runs = []
        for side, executor in enumerate(executors):
            meta = describe(
                plan,
                _fingerprint(executor, probes[side]),
                environment(probes[side]),
                suite_text=suite_text,
                suite_path=suite_path,
                overrides=overrides,
            )
            runs.append(choose(meta, out=out / NAMES[side], new=False, retry=False)[0])
        stack.enter_context(_locks(runs, [name for name in names if name not in absent]))
        work = _PairedSessions(plan, PairedExecutors(executors), runs, absent, console, stack)
        interrupted = stoppable(work.run)
    pair = (revisions[BASE], revisions[HEAD])
    return PairedOutcome((runs[BASE], runs[HEAD]), pair, interrupted, tuple(notes))


def _python(revision: Revision, differ: bool, console: Console) -> str:
    """This environment where one serves both, else one made for the revision's own dependencies."""
    if not differ:
        return sys.executable
    return environment_for(revision.root, sys.executable, Path(gettempdir()) / "harness-environments", console)


def _fingerprint(executor: RemoteExecutor, probe: Json) -> Fingerprint:
    return Fingerprint(executor.hello["source"], executor.hello["versions"], fingerprint(probe).machine)


@contextmanager
def _locks(runs: Sequence[Run], devices: Sequence[str]) -> Iterator[None]:
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(run_lock(run.path, remedy="wait for it"))
        for device in devices:
            stack.enter_context(device_lock(device, f"ab into {runs[HEAD].path.parent.resolve()}"))
        yield


class _PairedSessions:
    """The loop over the plan's tasks, both sides at each of them together."""

    def __init__(
        self,
        plan: Plan,
        pair: PairedExecutors,
        runs: Sequence[Run],
        absent: dict[str, str],
        console: Console,
        stack: ExitStack,
    ) -> None:
        self.pair = pair
        self.stopping = PairedStopping(plan.groups, plan.tasks)
        self.open = [run.open_work() for run in runs]
        self.tasks = [task for task in plan.tasks if any(task.key in work for work in self.open)]
        self.display = stack.enter_context(ProgressDisplay(self.tasks, console))
        watcher = _RecordWatcher(self.display)
        self.sessions = []
        for side, run in enumerate(runs):
            journal = Journal(run.path / JOURNAL)
            stack.callback(journal.close)
            stopping = SharedStopping(self.stopping, side)
            session = Session(pair.sides[side], journal, run.fingerprint.id, watcher, stopping, absent)
            session.remember(run.records())
            self.sessions.append(session)

    def run(self) -> None:
        for task in self.stopping.pending_looks(self.open[HEAD]):
            self._look(task)
        for number, task in enumerate(self.tasks):
            if self.stopping.settled(task):
                continue
            self.display.started(task, number)
            self.pair.run_both(partial(self._step, task))
            self._look(task)
            self.display.finished(task, number)

    def _look(self, task: Task) -> None:
        look = self.stopping.look(task, "")
        if look is not None:
            for session in self.sessions:
                session.append_look(look)

    def _step(self, task: Task, side: int) -> None:
        self.sessions[side].step(task, self.open[side].get(task.key, set()), 0)
