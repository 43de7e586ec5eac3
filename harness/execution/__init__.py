"""The execution of a plan: from tasks to a run on disk. ``harness run`` and ``harness.run`` call `run_suite`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from harness.execution.executor import Executor
from harness.execution.inline import InlineExecutor
from harness.execution.local import LocalExecutor
from harness.execution.progress import ProgressDisplay
from harness.execution.session import Session, absent_devices, check_foreign
from harness.execution.stopping import Stopping
from harness.machine.fingerprint import busy_warning, environment, fingerprint
from harness.planning import Plan
from harness.store.directory import choose, describe
from harness.store.journal import NAME as JOURNAL
from harness.store.journal import Journal
from harness.store.locks import device_lock, run_lock
from harness.store.run import Run

EXECUTORS: dict[str, Callable[[], Executor]] = {"local": LocalExecutor, "inline": InlineExecutor}


@dataclass(frozen=True)
class Outcome:
    """A run, whether it went on with an earlier one, whether it was stopped, and what it found when it began."""

    run: Run
    resumed: bool
    interrupted: bool
    reused: int
    """Cells that had nothing left to do."""
    absent: dict[str, str]


def run_suite(
    plan: Plan,
    *,
    suite_text: str,
    suite_path: str,
    overrides: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    new: bool = False,
    retry: bool = False,
    executor: str = "local",
    max_seconds: float | None = None,
    console: Console | None = None,
) -> Outcome:
    """Measure what `plan` asks for and has not been measured yet, every record on disk at once.

    HarnessError when the directory holds other work, when another run is on the same device, or when no
    worker can start. Ctrl-C (or `max_seconds`) ends the run between two records; the same command goes on.
    """
    console = console or Console(stderr=True)
    with ExitStack() as stack:
        performer = stack.enter_context(EXECUTORS[executor]())
        names = list(dict.fromkeys(cell.device.name for cell in plan.cells))
        probe = performer.probe(names)
        meta = describe(
            plan,
            fingerprint(probe),
            environment(probe),
            suite_text=suite_text,
            suite_path=suite_path,
            overrides=overrides,
        )
        run, resumed = choose(meta, out=None if out is None else Path(out), new=new, retry=retry)
        absent = absent_devices(probe)
        _lock(stack, run, [name for name in names if name not in absent])
        warning = busy_warning() if len(absent) < len(names) else None
        if warning:
            console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
        before = run.records()
        check_foreign(before, run.fingerprint.id)
        open_work = run.open_work(before, retry)
        reused = len(plan.cells) - len({cell for pairs in open_work.values() for cell, _ in pairs})
        journal = Journal(run.path / JOURNAL)
        stack.callback(journal.close)
        tasks = [task for task in plan.tasks if task.key in open_work]
        display = stack.enter_context(ProgressDisplay(tasks, console))
        stopping = Stopping(plan.groups, plan.tasks)
        session = Session(performer, journal, run.fingerprint.id, display, stopping, absent)
        session.remember([record for record in before if not (retry and record.status.failed)])
        for task in stopping.pending_looks(open_work):
            session.step(task, set(), 0)
        interrupted = stoppable(lambda: session.work(tasks, open_work), max_seconds)
    return Outcome(run, resumed, interrupted, reused, absent)


def _lock(stack: ExitStack, run: Run, devices: Sequence[str]) -> None:
    stack.enter_context(run_lock(run.path, remedy="wait for it, or start a run of your own with --new"))
    for device in devices:
        stack.enter_context(device_lock(device, f"run {run.path.resolve()}"))


def stoppable(work: Callable[[], None], max_seconds: float | None) -> bool:
    """Whether `work` was ended by Ctrl-C, SIGTERM or the clock before it was through."""
    try:
        with _signals(max_seconds):
            work()
    except KeyboardInterrupt:
        return True
    return False


@contextmanager
def _signals(max_seconds: float | None) -> Iterator[None]:
    """SIGTERM and an alarm after `max_seconds` act as Ctrl-C does; only where signals can be set."""
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    for number in before:
        # also SIGINT: a shell starts background commands with it ignored
        signal.signal(number, signal.default_int_handler)
    if max_seconds is not None:
        signal.setitimer(signal.ITIMER_REAL, max_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
