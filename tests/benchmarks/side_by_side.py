"""Two ways to do one thing, timed in turns inside one process, and whether their ratio is within its limit.

Other load lengthens steps and nothing shortens them, so minima are compared. A ratio beyond its limit gets more turns, in
case no moment was quiet (1.4 has been seen as 1.6 after ten of them); where it stays there and others had much of the
processors meanwhile, it says nothing and the test is skipped.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import timm
import torch
from torch import nn

from harness import blocks
from harness.devices.cpu import processor_name

OTHERS = 0.15
"""Share of the processors' time that others may take before a ratio beyond its limit says nothing. Two threads that
wait for each other lose far more than a neighbour takes: with one busy neighbour 1.4 was seen as 2.3."""

LIMIT = 1.0
"""A block costs no more than what one writes down without a thought for the cost."""

ALLOWANCE = 1.10
"""Most blocks do the very operations of their counterpart, and minima of a few turns scatter: 0.93 to 1.04 with four
others on two cores. One needless copy of a map costs 1 to 8 % and may pass; a branch padded by hand instead of by its
convolution (1.15), a kernel composed with one dense product too many (1.19) do not."""

CLEAR = 0.5
"""A ratio so far below the limit needs no second turn: no hiccup is as long as that."""

BATCH, PIXELS = 16, 160
"""Of a training step of ResNet-18: the size at which the authors' OREPA and DBB were timed."""

Step = Callable[[], float]
"""Does the work once; seconds."""

Pairs = list[tuple[float, float]]
"""Seconds of the plain way and of the other, turn by turn."""


@dataclass(frozen=True)
class Turns:
    """At least and at most so many while the ratio is within its limit, for about `seconds`; beyond it up to `patience`."""

    least: int = 3
    most: int = 8
    seconds: float = 0.4
    patience: float = 20.0

    def enough(self, taken: int, ratio: float, limit: float, spent: float) -> bool:
        if ratio > limit:
            return spent > self.patience and taken >= self.least
        return ratio <= CLEAR * limit or taken >= self.most or (taken >= self.least and spent > self.seconds)


USUAL = Turns()


class OtherLoad:
    """The share of the processors' time that went to others (the hypervisor's guests included) since the start."""

    def __init__(self) -> None:
        self.before = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return sum(times[:8]) - idle, time.process_time(), time.perf_counter()

    def share(self) -> float:
        busy, own, wall = (after - before for after, before in zip(self._now(), self.before, strict=True))
        return (busy - own) / (wall * (psutil.cpu_count() or 1))


def in_turns(plain: Step, other: Step, limit: float, turns: Turns) -> Pairs:
    """Seconds of both in pairs. Which is first alternates: the second finds the first one's memory."""
    pairs, start = Pairs(), time.perf_counter()
    while not pairs or not turns.enough(len(pairs), ratio_of_minima(pairs), limit, time.perf_counter() - start):
        seconds = {step: step() for step in ((plain, other) if len(pairs) % 2 else (other, plain))}
        pairs.append((seconds[plain], seconds[other]))
    return pairs


def ratio_of_minima(pairs: Pairs) -> float:
    """The other's shortest step over the plain one's."""
    plains, others = zip(*pairs, strict=True)
    return min(others) / min(plains)


def held_to(
    name: str, plain: Step, other: Step, limit: float = LIMIT * ALLOWANCE, turns: Turns = USUAL, benchmark: Any = None
) -> dict[str, Any]:
    """Time both and fail where the other takes more than `limit` times as long; the figures, also in `benchmark`."""
    plain(), other()  # warm-up
    load = OtherLoad()
    run = benchmark.pedantic if benchmark else lambda function, arguments: function(*arguments)
    pairs = run(in_turns, (plain, other, limit, turns))
    ratio, taken = ratio_of_minima(pairs), load.share()
    plains, others = zip(*pairs, strict=True)
    figures = {
        "ratio_of_minima": round(ratio, 3),
        "median_ratio": round(statistics.median(b / a for a, b in pairs), 3),
        "turns": len(pairs),
        "plain_seconds": round(min(plains), 4),
        "other_seconds": round(min(others), 4),
        "taken_by_others": round(taken, 3),
    }
    if benchmark:
        benchmark.extra_info.update(figures)
    found = f"{name}: {ratio:.3f} ({min(others):.4f} s against {min(plains):.4f} s), {len(pairs)} turns"
    print(f"\n{found}; others took {taken:.0%} of the processors")
    if ratio > limit and taken > OTHERS:
        pytest.skip(f"{found}, but others took {taken:.0%} of the processors")
    assert ratio <= limit, found
    return figures


def resnet18(block: str) -> nn.Module:
    """ResNet-18 with its 3x3 convolutions and their batch norms replaced, the stem kept."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("resnet18").train()
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for basic in stage:
            for number in "12":
                conv = getattr(basic, f"conv{number}")
                put = blocks.create(block, conv.in_channels, conv.out_channels, 3, conv.stride[0])
                setattr(basic, f"conv{number}", put)
                setattr(basic, f"bn{number}", nn.Identity())
    return model


def recording() -> str | None:
    """The file that BLOCK_SPEED names, for figures to be kept."""
    return os.environ.get("BLOCK_SPEED")


def record(part: str, name: str, figures: dict[str, Any]) -> None:
    """Into the file that BLOCK_SPEED names, beside what other tests have written there."""
    if not (path := recording()):
        return
    written = json.loads(Path(path).read_text()) if Path(path).exists() else {}
    written |= {
        "what": "seconds of a training step in one thread, of a straightforward module of a block's equation (plain) and of "
        "the block (other) (blocks), of a network's plain training pass and of composing its kernels (kernels); minima of "
        "turns in one process, and their ratio",
        "command": "BLOCK_SPEED=... python -m pytest tests/benchmarks/test_blocks_against_branches.py "
        "tests/benchmarks/test_kernel_generation.py",
        "machine": {
            "model": processor_name(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
    }
    written["time"] = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())
    written[part] = {**written.get(part, {}), name: figures}
    Path(path).write_text(json.dumps(written, indent=1) + "\n")
