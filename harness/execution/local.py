"""An executor with one fresh process per task, forked from a server that has torch and the harness loaded already.

A worker may hang, crash, be killed or use up the machine's memory: whatever happens, its parent gets a `Death` and
goes on. A parent that is killed takes its workers with it (process.py).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from harness.errors import HarnessError
from harness.execution.executor import Death, Executor
from harness.records import Json, Status
from harness.units import readable
from harness.worker.messages import Emit, Order
from harness.worker.process import main

PRELOAD = ["harness.worker.process", "harness.worker.preload"]
POLL = 0.2
"""Seconds between looks at the clock and at the worker's memory."""

EXIT_TIMEOUT = 5.0
"""Seconds that a worker which has sent everything may take to exit."""

PROBE_TIMEOUT = 300.0
MEMORY_SHARE = 0.8
TAIL = 4000
"""Characters of a dead worker's output that its record keeps."""


_STARTING = threading.Lock()
"""One at a time: starting a process looks at sys.modules, which `_without_main` changes for a moment."""


class LocalExecutor(Executor):
    """Performs tasks one after the other, each in its own process. Use as a context manager."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._worker: Any = None

    def stop(self) -> None:
        self._kill()

    def probe(self, names: list[str]) -> Json:
        answers: list[Json] = []
        death = self._run({"probe": names}, answers.append, PROBE_TIMEOUT, None)
        if death is not None or not answers:
            raise _no_worker(death)
        return answers[0]["probe"]

    def noise(self, seconds: float, device: str = "cpu") -> Json:
        """How steady this machine's clock is right now: a step against itself for `seconds`, in a fresh process."""
        answers: list[Json] = []
        death = self._run({"noise": seconds, "device": device}, answers.append, PROBE_TIMEOUT + seconds, None)
        if death is not None:
            raise _no_worker(death)
        return answers[0]["noise"]

    def perform(self, order: Order, emit: Emit) -> Death | None:
        budget = order.task.budget
        memory = budget.memory or int(MEMORY_SHARE * psutil.virtual_memory().total)
        return self._run({"perform": order.to_json(), "memory": memory}, emit, budget.timeout, memory)

    def _run(self, request: Json, emit: Emit, timeout: float, memory: int | None) -> Death | None:
        reader, writer = self._context.Pipe(duplex=True)
        with tempfile.TemporaryDirectory(prefix="harness-") as folder:
            output = Path(folder) / "output"
            self._start(request, writer, output)
            try:
                death = self._watch(reader, emit, timeout, memory, output)
            finally:
                self._kill()
                reader.close()
        return death

    def _start(self, request: Json, writer: Connection, output: Path) -> None:
        worker = self._context.Process(target=main, args=(request, writer, str(output)))
        with _STARTING, _without_main(), _uninterrupted():
            worker.start()
            self._worker = worker
        writer.close()

    def _watch(self, reader: Connection, emit: Emit, timeout: float, memory: int | None, output: Path) -> Death | None:
        deadline = time.monotonic() + timeout
        peak, polled = 0, time.monotonic()
        while True:
            for ready in wait([reader, self._worker.sentinel], timeout=POLL):
                if ready is reader:
                    try:
                        message = json.loads(reader.recv_bytes())
                    except (EOFError, OSError):
                        return self._ended(peak, memory, output)
                    began = time.monotonic()
                    reply = emit(message)
                    deadline += time.monotonic() - began  # waiting for a turn is not the worker's time
                    if reply is not None:
                        with contextlib.suppress(OSError):  # it has ended: the next poll says how
                            reader.send_bytes(json.dumps(reply).encode())
                elif not reader.poll():
                    return self._ended(peak, memory, output)
            if time.monotonic() - polled > POLL:  # not at every message: to ask costs milliseconds of the processor
                polled = time.monotonic()
                peak = max(peak, self._resident())
            if memory is not None and peak > memory:
                self._kill()
                return Death(
                    Status.OOM,
                    f"the task held {readable(peak, 'B')}, its limit is {readable(memory, 'B')}",
                    _tail(output),
                )
            if time.monotonic() > deadline:
                self._kill()
                return Death(Status.TIMEOUT, f"the task took longer than {timeout:g} s", _tail(output))

    def _ended(self, peak: int, memory: int | None, output: Path) -> Death | None:
        """The worker's end, from its exit code."""
        self._worker.join(EXIT_TIMEOUT)
        code = self._worker.exitcode
        if not code:  # None: all was sent, only threads of a library keep it from leaving
            return None
        if code == -signal.SIGKILL and memory is not None and peak > 0.9 * memory:
            return Death(Status.OOM, f"killed while holding {readable(peak, 'B')}", _tail(output))
        if code < 0:
            return Death(Status.KILLED, f"the worker was ended by {signal.Signals(-code).name}", _tail(output))
        return Death(Status.ERROR, f"the worker exited with {code}", _tail(output))

    def _resident(self) -> int:
        try:
            process = psutil.Process(self._worker.pid)
            return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)])
        except psutil.Error:
            return 0

    def _kill(self) -> None:
        """End the worker and whatever it started; nothing when it has ended already."""
        with _STARTING:  # one that another thread has half started can be ended once it is there, and must be
            worker, self._worker = self._worker, None
        if worker is None:
            return
        with _uninterrupted():
            if worker.is_alive():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    # before its setsid the worker shares the server's group: kill it alone then
                    grouped = os.getpgid(worker.pid) == worker.pid
                    (os.killpg if grouped else os.kill)(worker.pid, signal.SIGKILL)
            worker.join()
            worker.close()


def _no_worker(death: Death | None) -> HarnessError:
    tail = death.output if death else ""
    return HarnessError(
        f"a worker process cannot start: {death.reason if death else 'no answer'}\n{tail}".rstrip(),
        remedy="see whether 'python -c \"import torch, timm\"' works in this environment",
    )


def _tail(output: Path) -> str:
    try:
        return output.read_text(errors="replace")[-TAIL:]
    except OSError:
        return ""


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off signals: one that came while a process is half started would leave it behind, unknown."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, lambda n, _: arrived.append(n)) for number in stops}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep workers from importing the caller's script again: they need nothing of it, and it may have no guard."""
    real = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = real
