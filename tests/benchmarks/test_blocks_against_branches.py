"""What a training step of every block costs, as a ratio to a straightforward module of the same equation.

One thread, kernel 3 where the block has it, c -> c channels: 8x64x56x56 against branches on the feature map. A block
that trains as one composed kernel is also held against the same terms composed in plain torch, at 8x256x7x7, where the
kernel weighs more than the map. With BLOCK_SPEED set to a path, figures and machine are written there, as JSON.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
import straightforward
import straightforward_attention
import straightforward_experts
import straightforward_filters
import straightforward_gates
import straightforward_structural
import straightforward_warehouse
import torch
from side_by_side import Step, held_to, record, recording
from straightforward_composed import BOTH, Composed
from torch import Tensor, nn

from harness import blocks
from harness.blocks import BLOCKS, Choice

PLACES = {"features": (8, 64, 56), "composed": (8, 256, 7)}
"""Batch, channels, rows and columns."""
SLOW = {"deformable": (2, 64, 28)}
"""torchvision's kernel takes two seconds for a step of the usual size."""
FEATURES: dict[str, Callable[[int, int], nn.Module]] = {
    **straightforward.FEATURES,
    **straightforward_experts.FEATURES,
    **straightforward_gates.FEATURES,
    **straightforward_warehouse.FEATURES,
    **straightforward_filters.FEATURES,
    **straightforward_attention.FEATURES,
    **straightforward_structural.FEATURES,
}
"""Every block that has no composed kernel, by what it does to the map."""

KERNEL_SIZES = {
    "expand_ck": 5,
    "expand_fc": 1,
    "involution": 7,
    "orepa_1x1": 1,
    "orepa_stem": 7,
    "replk": 13,
    "stacked_3x3": 5,
    "unirep": 7,
}
"""Where a block has no 3, or is not meant for it."""
DEPTHWISE = ("replk", "repmixer", "repvgg_dw", "unirep")


class Case(NamedTuple):
    """A block with its options at their defaults (but for `branches`), and how its counterpart is evaluated."""

    block: str
    counterpart: str = "features"
    branches: str | None = None

    def size(self) -> int:
        return KERNEL_SIZES.get(self.block, 3)

    def made(self, channels: int, **options: Choice) -> nn.Module:
        groups = channels if self.block in DEPTHWISE else 1
        if self.branches is not None:
            options["branches"] = self.branches
        return blocks.create(self.block, channels, channels, self.size(), groups=groups, **options)

    def straightforward(self, channels: int) -> nn.Module:
        if self.branches is not None:
            return straightforward.grown_dyrep(channels, self.size())
        if self.block in FEATURES:
            return FEATURES[self.block](channels, self.size())
        return BOTH[self.block](channels, self.size(), Composed if self.counterpart == "composed" else nn.Sequential)

    def __str__(self) -> str:
        return "-".join(part for part in self if part)


CASES = (
    *(Case(name) for name in sorted({*FEATURES, *BOTH})),
    *(Case(name, "composed") for name in BOTH),
    Case("dyrep", branches="all"),
)


def test_every_block_has_its_counterpart() -> None:
    have = {case.block for case in CASES}
    assert have <= set(BLOCKS)
    assert len(have) >= 58, "a new block is one file and may come without; none that is here may go"
    assert set(BOTH) == {name for name in have if evaluation(name) == "online"}


def evaluation(name: str) -> Choice | None:
    """The default one of a block that has any."""
    reparam = BLOCKS[name].options().get("reparam")
    return reparam.default if reparam else None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_counterpart_is_the_same_equation(case: Case) -> None:
    """In training: the parameters, what they make of x, and the gradients of x and of all parameters, in float64."""
    torch.manual_seed(0)
    block, counterpart = case.made(8).double(), case.straightforward(8).double()
    theirs, ours = list(block.parameters()), list(counterpart.parameters())
    assert [parameter.numel() for parameter in theirs] == [parameter.numel() for parameter in ours]
    with torch.no_grad():
        for their, our in zip(theirs, ours, strict=True):
            their.add_(torch.randn_like(their), alpha=0.3)  # what starts at zero or one hides mistakes
            our.copy_(their.reshape(our.shape))
    x = torch.randn(2, 8, 11, 9, dtype=torch.float64, requires_grad=True)
    y, expected = block(x), counterpart(x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    direction = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *theirs], direction)
    wanted = torch.autograd.grad(expected, [x, *ours], direction)
    for their, our in zip(found, wanted, strict=True):
        torch.testing.assert_close(their, our.reshape(their.shape), rtol=1e-9, atol=1e-9)


def stepper(module: nn.Module, x: Tensor) -> Step:
    """One training step (forward, mean of squares, backward down to x, SGD) and its seconds.

    Processor time: with one thread it is all there is to a step, and what neighbours take is not in it.
    """
    module = module.to(x.dtype).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)

    def step() -> float:
        start = time.process_time()
        optimizer.zero_grad()
        x.grad = None
        module(x).square().mean().backward()
        optimizer.step()
        return time.process_time() - start

    return step


def other_evaluation(case: Case, x: Tensor) -> dict[str, float]:
    """Seconds of a step where the block has an evaluation that is not its default: for the record, not judged."""
    steps = {
        choice: stepper(case.made(x.shape[1], reparam=choice), x)
        for choice in blocks.declaration(case.block)["evaluations"]
        if choice != evaluation(case.block)
    }
    return {f"{choice}_seconds": round(min(step(), step()), 4) for choice, step in steps.items()}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("one_thread")
def test_a_training_step_costs_no_more_than_the_straightforward_one(case: Case, benchmark) -> None:
    torch.manual_seed(0)
    batch, channels, pixels = SLOW.get(case.block, PLACES[case.counterpart])
    x = torch.randn(batch, channels, pixels, pixels, requires_grad=True)
    plain, block = stepper(case.straightforward(channels), x), stepper(case.made(channels), x)
    figures = held_to(f"{case} over straightforward", plain, block, benchmark=benchmark)
    if recording() and case.counterpart == "features":
        figures |= other_evaluation(case, x)
    record("blocks", str(case), figures)
