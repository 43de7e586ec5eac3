"""What runs inside a worker process: guards first, then the task.

The parent imports this module too, to name `main`, so torch comes in only inside it; the forkserver has loaded
worker.py before, and with it torch, timm and the whole harness.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from harness.errors import Unsupported
from harness.records import Json, Task


def main(order: Json, answers: Connection, output: str) -> None:
    """Do one order: ``{"task": ..., "key": ..., "fingerprint": ..., "memory": ..., "lockstep": ..., "slowed": ...}``,
    ``{"probe": [...]}`` or ``{"noise": seconds, "device": name}``.

    Answers are JSON texts on `answers`; whatever the task prints goes to the file `output`.
    """
    _guard(output)
    from harness.devices.cpu import limit_memory
    from harness.worker import worker

    def emit(message: Json) -> None:
        answers.send_bytes(json.dumps(message).encode())

    if "probe" in order:
        emit({"probe": worker.probe(order["probe"])})
        return
    if "noise" in order:
        from harness.measuring.noise import pairs

        emit({"noise": pairs(order["noise"], order["device"])})
        return
    if order["memory"] is not None:
        with contextlib.suppress(Unsupported):  # not on every system; the parent watches as well
            limit_memory(order["memory"])
    turn = _turns(answers, emit) if order["lockstep"] else contextlib.nullcontext
    task = Task.from_json(order["task"])
    worker.perform(task, order["key"], order["fingerprint"], emit, turn=turn, slowed=order["slowed"])


def _turns(answers: Connection, emit: Callable[[Json], None]) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """What a visit runs inside when another process takes turns with this one: wait for the word, say when done."""

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        emit({"turn": True})
        answers.recv_bytes()
        try:
            yield
        finally:
            emit({"turn_done": True})

    return turn


def _guard(output: str) -> None:
    """Own process group, death with the parent, deaf to Ctrl-C (the parent decides), output into a file."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_after, args=(parent,), daemon=True).start()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    # text that tests or progress bars wrapped around the streams must not hold on to the old ones
    sys.stdout, sys.stderr = (os.fdopen(os.dup(i), "w", buffering=1) for i in (1, 2))


def _die_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os.killpg(0, signal.SIGKILL)
