"""How steady this machine is: one small training step against its twin, taking turns as variants of a group do.

The two are built alike, so whatever differs between their times is the machine's doing. Runs inside a worker;
`harness doctor` makes sense of the numbers.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from time import perf_counter, process_time

import torch

from harness import blocks
from harness.records import Json

VISIT = 0.01
"""Seconds of one sample, as in turns.py, whose noise this stands for."""

SHAPE = (8, 32, 28, 28)
"""A step of some milliseconds on two cores: long enough to use all threads, short enough for visits of 10 ms."""

WARMUP = 5
"""Steps before anything is timed: the second is as fast as any later one, the rest settle the caches."""


def pairs(seconds: float) -> Json:
    """Pairs of visits, A B and B A by turns, for about `seconds`, and what the process met meanwhile.

    ``passes``: [[seconds of a step of A, of B], ...]; ``repeats``: steps in a visit; ``wall`` and ``cpu``: seconds;
    ``involuntary``: how often the process had to give its processor away; ``threads``: torch's.
    """
    twins = [_step(), _step()]
    repeats = _calibrated(twins)
    switches, cpu, start = _involuntary(), process_time(), perf_counter()
    passes: list[list[float]] = []
    while perf_counter() - start < seconds or not passes:
        order = (0, 1) if len(passes) % 2 == 0 else (1, 0)
        found = {which: _visit(twins[which], repeats) for which in order}
        passes.append([found[0], found[1]])
    return {
        "passes": passes,
        "repeats": repeats,
        "wall": perf_counter() - start,
        "cpu": process_time() - cpu,
        "involuntary": _involuntary() - switches,
        "threads": torch.get_num_threads(),
    }


def _step() -> Callable[[], object]:
    """A training step of a convolution with its batch norm; both twins draw the same weights."""
    torch.manual_seed(0)
    _, channels, *_ = SHAPE
    model = blocks.create("conv", channels, channels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    x_NCHW = torch.randn(SHAPE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = model(x_NCHW).square().mean()
        loss.backward()
        optimizer.step()

    return step


def _calibrated(twins: list[Callable[[], object]]) -> int:
    """How many steps make a visit; the twins must share the number, or they would not be twins."""
    for step in twins:
        for _ in range(WARMUP):
            step()
    fastest = min(_visit(step, 1) for step in twins for _ in range(WARMUP))
    return max(1, math.ceil(VISIT / fastest))


def _visit(step: Callable[[], object], repeats: int) -> float:
    """Seconds per step, after one that is not counted: the twin had the caches."""
    step()
    start = perf_counter()
    for _ in range(repeats):
        step()
    return (perf_counter() - start) / repeats


def _involuntary() -> int:
    """Involuntary context switches of all threads of this process so far (getrusage(2), ru_nivcsw)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
