"""The server of a source tree's own executor, for comparing revisions: ``python -m harness.execution.ab.server``.

Requests come in as JSON lines, answers go out as JSON lines:

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
from harness.execution.ab.remote import PROTOCOL
from harness.execution.local import LocalExecutor
from harness.machine.fingerprint import source_digest, versions
from harness.records import RECORD_VERSION, Json
from harness.worker.messages import Order, asks

PACKAGE = Path(__file__).parents[2]
"""The harness that measures."""

EXIT_TIMEOUT = 10.0
"""Seconds that ending a worker may take once nobody is listening any more."""


@dataclass
class ExecutorServer:
    """An executor at the far end of two pipes. `inbox` has the lines that came in, `send` writes one."""

    executor: LocalExecutor
    inbox: SimpleQueue[Json]
    send: Callable[[Json], None]

    def serve(self) -> None:
        """Answer requests until one of them is to stop."""
        self.send({"hello": hello()})
        while not (request := self.inbox.get()).get("stop"):
            try:
                self._do(request)
            except HarnessError as problem:
                self.send({"error": {"problem": problem.problem, "remedy": problem.remedy}})

    def _do(self, request: Json) -> None:
        if "probe" in request:
            self.send({"probe": self.executor.probe(request["probe"])})
            return
        death = self.executor.perform(parse_order(request["perform"]), self._relay)
        self.send({"end": death and asdict(death)})

    def _relay(self, message: Json) -> Json | None:
        self.send({"message": message})
        return self.inbox.get()["reply"] if asks(message) else None


def hello() -> Json:
    """What this side is: the protocol it speaks, and which source it measures with."""
    return {
        "protocol": PROTOCOL,
        "records": RECORD_VERSION,
        "source": source_digest(),
        "versions": versions(),
        "package": str(PACKAGE),
    }


def parse_order(value: Json) -> Order:
    """The order of another revision. HarnessError unless it means here exactly what it means there."""
    try:
        order = Order.from_json(value)
        same = order.to_json() == value
        difference = "a cell or a budget has other fields there"
    except (KeyError, TypeError, ValueError) as problem:
        same, difference = False, f"{type(problem).__name__}: {problem}"
    if not same:
        raise HarnessError(
            f"the harness in {PACKAGE} does not understand this task ({difference})",
            remedy="compare two revisions on the same side of that change",
        )
    return order


def main() -> None:
    """Serve the process at the other end of standard input and output; never outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the driver decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    requests, answers = _own_pipes()

    def send(message: Json) -> None:
        try:
            answers.write(json.dumps(message).encode() + b"\n")
            answers.flush()
        except BrokenPipeError:
            sys.exit(0)  # not an OSError of the worker's pipe, for which the executor would take it

    inbox: SimpleQueue[Json] = SimpleQueue()
    threading.Thread(target=_read, args=(requests, inbox), daemon=True).start()
    with LocalExecutor() as executor:
        ExecutorServer(executor, inbox, send).serve()


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The protocol's two ends, out of reach of whatever prints or reads in this process and in its workers."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _read(requests: BinaryIO, inbox: SimpleQueue[Json]) -> None:
    """Pass lines on. At their end the driver is gone: unwind the main thread, whatever it waits for, and its worker.

    This thread reads also while a worker hangs, so a driver that is killed leaves nothing behind.
    """
    try:
        for line in requests:
            inbox.put(json.loads(line))
    finally:
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        signal.pthread_kill(main_thread, signal.SIGTERM)
        time.sleep(EXIT_TIMEOUT)
        os._exit(1)  # the worker follows: it watches this process (process.py)


if __name__ == "__main__":
    main()
