"""Background load made on purpose: a process that takes one core for a share of the time, in bursts."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BURST = (0.1, 2.0)
"""Seconds a burst lasts, drawn evenly: shorter than a round and longer than a visit, the worst of both."""


@dataclass
class Load:
    """Shares of one core: what was asked for, and what was used, once the load has ended (None where unknown)."""

    wanted: float
    used: float | None = None


@contextmanager
def background_load(share: float, seed: int = 0) -> Iterator[Load]:
    """Keep a core busy for `share` of the time while the `with` lasts; with 0 nothing is started."""
    load = Load(share)
    if not share:
        yield load
        return
    command = [sys.executable, "-S", "-E", __file__, str(share), str(seed), str(os.getpid())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    began = time.monotonic()
    try:
        yield load
    finally:
        import psutil  # not at the top: the load itself runs this file without any package

        try:
            times = psutil.Process(process.pid).cpu_times()
            load.used = (times.user + times.system) / (time.monotonic() - began)
        except psutil.Error:
            load.used = None  # it was killed from outside
        process.kill()
        process.wait()


def generate(share: float, seed: int, parent: int) -> None:
    """Bursts of work and of rest until the parent has gone."""
    draw = random.Random(seed)
    while os.getppid() == parent:
        busy = draw.uniform(*BURST)
        end = time.perf_counter() + busy
        while time.perf_counter() < end:
            pass
        time.sleep(draw.uniform(*BURST) * (1 - share) / share)


if __name__ == "__main__":
    generate(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
