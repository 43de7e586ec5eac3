"""What composing the kernels of an OREPA-ResNet-18 costs, as a ratio to the plain network's forward and backward."""

from __future__ import annotations

import time

import pytest
import torch
from side_by_side import BATCH, PIXELS, Step, Turns, held_to, record, resnet18
from torch.nn import functional as F

from harness.blocks.parts.linear_branches import LinearBranches

pytestmark = pytest.mark.alone

LIMIT = 0.6
"""Its three large GEMMs alone are 0.3 of the plain network's multiply-accumulates at this size."""

TURNS = Turns(least=3, most=4, seconds=10.0, patience=15.0)


def plain_pass() -> Step:
    """Forward, loss and backward of the plain ResNet-18, and their seconds."""
    model = resnet18("conv")
    images, labels = torch.randn(BATCH, 3, PIXELS, PIXELS), torch.randint(0, 1000, (BATCH,))

    def run() -> float:
        model.zero_grad()
        start = time.perf_counter()
        F.cross_entropy(model(images), labels).backward()
        return time.perf_counter() - start

    return run


def generation() -> Step:
    """All kernels of the same network with OREPA, then from their gradients those of all that they are made of."""
    branches = [module for module in resnet18("orepa").modules() if isinstance(module, LinearBranches)]
    assert len(branches) == 16
    gradients = [torch.randn_like(branch.kernel()) for branch in branches]

    def run() -> float:
        for branch in branches:
            branch.zero_grad()
        start = time.perf_counter()
        torch.autograd.backward([branch.kernel() for branch in branches], gradients)
        took = time.perf_counter() - start
        assert all(parameter.grad is not None for branch in branches for parameter in branch.parameters())
        return took

    return run


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_generating_all_kernels_of_orepa_resnet18_costs_at_most_its_limit(benchmark) -> None:
    figures = held_to("kernels over plain forward and backward", plain_pass(), generation(), LIMIT, TURNS, benchmark)
    record("kernels", "orepa, resnet18, batch 16, 160 px, 2 threads", figures)
