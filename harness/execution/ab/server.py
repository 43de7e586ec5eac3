"""A source tree's own executor, served to whoever compares revisions: ``python -m harness.execution.ab.server``.

Orders come in as JSON lines, answers go out as JSON lines:

    (start)                                      {"hello": {"protocol", "records", "source", "versions", "package"}}
    {"probe": [names]}                           {"probe": {...}}
    {"perform": {"task", "key", "fingerprint",   {"message": ...} for each of the worker's, and where the message asks
                 "lockstep", "slowed"}}          for it {"reply": ...} is awaited; at last {"end": null or the death}
    {"stop": true}, or the end of the input      (ends, whatever is being performed)

A problem that the user can put right is answered with {"error": {"problem", "remedy"}} in place of the rest.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from harness.errors import HarnessError
from harness.execution.ab.remote import PROTOCOL, asks
from harness.execution.local import LocalExecutor
from harness.machine.fingerprint import source_digest, versions
from harness.records import RECORD_VERSION, Json, Task

PACKAGE = Path(__file__).parents[1]
"""The harness that measures."""

LINGER = 10.0
"""Seconds that ending a worker may take once nobody is listening any more."""


@dataclass
class Station:
    """An executor at the far end of two pipes. `inbox` has the lines that came in, `send` writes one."""

    executor: LocalExecutor
    inbox: SimpleQueue[Json]
    send: Callable[[Json], None]

    def serve(self) -> None:
        """Answer orders until told to stop."""
        self.send({"hello": hello()})
        while not (order := self.inbox.get()).get("stop"):
            try:
                self._do(order)
            except HarnessError as problem:
                self.send({"error": {"problem": problem.problem, "remedy": problem.remedy}})

    def _do(self, order: Json) -> None:
        if "probe" in order:
            self.send({"probe": self.executor.probe(order["probe"])})
            return
        work = order["perform"]
        task = understood(work["task"])
        death = self.executor.perform(
            task,
            work["key"],
            work["fingerprint"],
            self._relay,
            lockstep=work["lockstep"],
            slowed=work["slowed"],
        )
        self.send({"end": death and asdict(death)})

    def _relay(self, message: Json) -> Json | None:
        self.send({"message": message})
        return self.inbox.get()["reply"] if asks(message) else None


def hello() -> Json:
    """What this side is: the language it speaks, and which source it measures with."""
    return {
        "protocol": PROTOCOL,
        "records": RECORD_VERSION,
        "source": source_digest(),
        "versions": versions(),
        "package": str(PACKAGE),
    }


def understood(order: Json) -> Task:
    """The task that another revision asked for. HarnessError unless it means here exactly what it means there."""
    try:
        task = Task.from_json(order)
        same = task.to_json() == order
        difference = "a cell or a budget has other fields there"
    except (KeyError, TypeError, ValueError) as problem:
        same, difference = False, f"{type(problem).__name__}: {problem}"
    if not same:
        raise HarnessError(
            f"the harness in {PACKAGE} does not understand this task ({difference})",
            remedy="compare two revisions on the same side of that change",
        )
    return task


def main() -> None:
    """Serve the process at the other end of standard input and output; never outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the driver decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    orders, answers = _own_pipes()

    def send(message: Json) -> None:
        try:
            answers.write(json.dumps(message).encode() + b"\n")
            answers.flush()
        except BrokenPipeError:
            sys.exit(0)  # not an OSError of the worker's pipe, for which the executor would take it

    inbox: SimpleQueue[Json] = SimpleQueue()
    threading.Thread(target=_read, args=(orders, inbox), daemon=True).start()
    with LocalExecutor() as executor:
        Station(executor, inbox, send).serve()


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The protocol's two ends, out of reach of whatever prints or reads in this process and in its workers."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return orders, answers


def _read(orders: BinaryIO, inbox: SimpleQueue[Json]) -> None:
    """Pass lines on. At their end the driver is gone: unwind the main thread, whatever it waits for, and its worker.

    This thread reads also while a worker hangs, so a driver that is killed leaves nothing behind.
    """
    try:
        for line in orders:
            inbox.put(json.loads(line))
    finally:
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        signal.pthread_kill(main_thread, signal.SIGTERM)
        time.sleep(LINGER)
        os._exit(1)  # the worker follows: it watches this process (process.py)


if __name__ == "__main__":
    main()
