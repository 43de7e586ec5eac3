"""The main function of a worker process: guards first, then the task.

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
from multiprocessing.connection import Connection

from harness.errors import Unsupported
from harness.records import Json
from harness.worker.messages import Order, asks


def main(request: Json, answers: Connection, output: str) -> None:
    """Do what is asked for: ``{"perform": order, "memory": bytes or None}``, ``{"probe": [...]}`` or
    ``{"noise": seconds, "device": name}``.

    Answers are JSON texts on `answers`; whatever the task prints goes to the file `output`.
    """
    _guard(output)
    from harness.devices.cpu import limit_memory
    from harness.worker import worker

    def emit(message: Json) -> Json | None:
        answers.send_bytes(json.dumps(message).encode())
        return json.loads(answers.recv_bytes()) if asks(message) else None

    if "probe" in request:
        emit({"probe": worker.probe(request["probe"])})
        return
    if "noise" in request:
        from harness.measuring.noise import pairs

        emit({"noise": pairs(request["noise"], request["device"])})
        return
    if request["memory"] is not None:
        with contextlib.suppress(Unsupported):  # not on every system; the parent watches as well
            limit_memory(request["memory"])
    worker.perform(Order.from_json(request["perform"]), emit)


def _guard(output: str) -> None:
    """Own process group, ends with the parent, ignores Ctrl-C (the parent decides), output into a file."""
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
