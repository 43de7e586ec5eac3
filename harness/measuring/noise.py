"""The noise of this machine: one small training step against an equal one, interleaved as variants of a group are.

The two are built alike, so whatever differs between their times comes from the machine. Runs inside a worker;
`harness doctor` interprets the numbers.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from time import perf_counter, process_time

import torch

from harness import blocks, devices
from harness.devices import Clock, Device
from harness.records import Json

VISIT = 0.01
"""Seconds of one sample, as in turns.py, whose noise this stands for."""

SHAPE = (8, 32, 28, 28)
"""A step of some milliseconds on two cores: long enough to use all threads, short enough for visits of 10 ms."""

LARGE_SHAPE = (32, 128, 56, 56)
"""On an accelerator: some milliseconds too, many times what launching a step takes the host."""

WARMUP = 5
"""Steps before anything is timed: the second is as fast as any later one, the rest settle the caches."""


def pairs(seconds: float, device: str = "cpu") -> Json:
    """Pairs of visits on `device`, A B and B A by turns, for about `seconds`, and what the process met meanwhile.

    ``passes``: [[seconds of a step of A, of B], ...]; ``repeats``: steps in a visit; ``wall`` and ``cpu``: seconds;
    ``involuntary``: how often the process had to give its processor away; ``threads``: torch's.
    """
    clock = Clock(devices.get(device))
    twins = [_step(clock.device), _step(clock.device)]
    repeats = _calibrated(clock, twins)
    switches, cpu, start = _involuntary(), process_time(), perf_counter()
    passes: list[list[float]] = []
    while perf_counter() - start < seconds or not passes:
        order = (0, 1) if len(passes) % 2 == 0 else (1, 0)
        found = {which: _visit(clock, twins[which], repeats) for which in order}
        passes.append([found[0], found[1]])
    return {
        "passes": passes,
        "repeats": repeats,
        "wall": perf_counter() - start,
        "cpu": process_time() - cpu,
        "involuntary": _involuntary() - switches,
        "threads": torch.get_num_threads(),
    }


def _step(device: Device) -> Callable[[], object]:
    """A training step of a convolution with its batch norm; both twins draw the same weights."""
    torch.manual_seed(0)
    shape = SHAPE if device.is_host else LARGE_SHAPE
    model = blocks.create("conv", shape[1], shape[1]).to(device.torch_device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    x_NCHW = torch.randn(shape, device=device.torch_device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = model(x_NCHW).square().mean()
        loss.backward()
        optimizer.step()

    return step


def _calibrated(clock: Clock, twins: list[Callable[[], object]]) -> int:
    """How many steps make a visit; the twins must share the number, or they would not be twins."""
    for step in twins:
        for _ in range(WARMUP):
            step()
    fastest = min(_visit(clock, step, 1) for step in twins for _ in range(WARMUP))
    return max(1, math.ceil(VISIT / fastest))


def _visit(clock: Clock, step: Callable[[], object], repeats: int) -> float:
    """Seconds per step, after one that is not counted: the twin had the caches."""
    clock.time(step)
    return clock.time(step, repeats) / repeats


def _involuntary() -> int:
    """Involuntary context switches of all threads of this process so far (getrusage(2), ru_nivcsw)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
