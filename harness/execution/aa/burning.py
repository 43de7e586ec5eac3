"""A neighbour made on purpose: a process that takes one core for a share of the time, in bursts."""

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
class Burn:
    """What a neighbour took: its own processor time over wall time, once it has been ended."""

    wanted: float
    taken: float | None = None


@contextmanager
def burning(share: float, seed: int = 0) -> Iterator[Burn]:
    """Keep a core busy for `share` of the time while the `with` lasts; with 0 nothing is started."""
    burn = Burn(share)
    if not share:
        yield burn
        return
    command = [sys.executable, "-S", "-E", __file__, str(share), str(seed), str(os.getpid())]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    began = time.monotonic()
    try:
        yield burn
    finally:
        import psutil  # not at the top: the neighbour itself runs this file without any package

        try:
            used = psutil.Process(process.pid).cpu_times()
            burn.taken = (used.user + used.system) / (time.monotonic() - began)
        except psutil.Error:
            burn.taken = None  # it was killed from outside
        process.kill()
        process.wait()


def burn(share: float, seed: int, parent: int) -> None:
    """Bursts of work and of rest until the parent has gone."""
    draw = random.Random(seed)
    while os.getppid() == parent:
        busy = draw.uniform(*BURST)
        end = time.perf_counter() + busy
        while time.perf_counter() < end:
            pass
        time.sleep(draw.uniform(*BURST) * (1 - share) / share)


if __name__ == "__main__":
    burn(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
