"""What a block costs a whole training step, as a ratio to the plain convolution in the same process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from harness import blocks

pytestmark = pytest.mark.alone

BATCH, PIXELS = 16, 160

LIMITS = {"orepa": 1.6, "dbb": 3.3}
"""Largest allowed cost of a step, plain = 1: the authors' OREPA was seen at 2.0 and their DBB at 3.3."""

ROUNDS = {"orepa": 5, "dbb": 3}
"""At least: a ratio above its limit gets more. Fewer for dbb: its steps are long."""

SECONDS = 30.0
"""Enough for all rounds on two idle cores, and as much again: beyond it the machine is too busy to be worth more."""

OTHERS = 0.15
"""Share of the processors' time that others may take before a ratio above its limit says nothing. Two threads that
wait for each other lose far more than a neighbour takes: with one busy neighbour 1.4 was seen as 2.3."""


ALLOWANCE = 1.15
"""The limits hold on a quiet machine. Even minima of many turns scatter by a tenth on a shared one, and a gate that fails
now and then for nothing is soon ignored; what a slip in a block costs (a copy of a map, a lost GEMM) is more."""


class Neighbours:
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


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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


def stepper(block: str) -> Callable[[], float]:
    """One training step (forward, loss, backward, SGD) and its seconds."""
    model = resnet18(block)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.randn(BATCH, 3, PIXELS, PIXELS), torch.randint(0, 1000, (BATCH,))

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def ratio_of_minima(pairs: list[tuple[float, float]]) -> float:
    """The block's shortest step over the plain one's."""
    plains, others = zip(*pairs, strict=True)
    return min(others) / min(plains)


@pytest.mark.slow
@pytest.mark.parametrize("block", LIMITS)
@pytest.mark.usefixtures("two_threads")
def test_a_training_step_of_resnet18_costs_no_more_than_its_limit(block: str, benchmark) -> None:
    plain, other = stepper("conv"), stepper(block)
    plain(), other(), other()  # warm-up
    neighbours, pairs = Neighbours(), list[tuple[float, float]]()

    def take_turns() -> None:
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end and (len(pairs) < ROUNDS[block] or ratio_of_minima(pairs) > LIMITS[block]):
            pairs.append((plain(), other()))

    # Turns inside one process, minimum over minimum: other load lengthens steps, nothing shortens them. A ratio above
    # its limit gets more turns, in case no moment was quiet: 1.4 has been seen as 1.6 after ten of
    # them. One below it gets none: it would take as many slow turns of the plain step to hide a block that costs more.
    benchmark.pedantic(take_turns)
    plains, others = zip(*pairs, strict=True)
    ratio, taken = ratio_of_minima(pairs), neighbours.share()
    benchmark.extra_info.update(
        ratio_of_minima=ratio,
        median_ratio=statistics.median(b / a for a, b in pairs),
        plain_seconds=min(plains),
        block_seconds=min(others),
        taken_by_others=taken,
    )
    found = f"{block}: {ratio:.2f}x plain ({min(others):.3f} s against {min(plains):.3f} s)"
    print(f"\n{found}; others took {taken:.0%} of the processors")
    if ratio > LIMITS[block] and taken > OTHERS:
        pytest.skip(f"{found}, but others took {taken:.0%} of the processors")
    assert ratio <= LIMITS[block] * ALLOWANCE, found
