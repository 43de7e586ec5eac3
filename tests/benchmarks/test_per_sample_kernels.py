"""Kernels of its own for every sample: one product to mix them, one convolution or product to apply them.

Each against what one writes first: a loop over samples, or the grouped convolution where a 1x1 goes to a batched product.
Forward and backward down to input and kernels, eight samples, one thread, processor time; ratios of minima, in turns
(side_by_side.py), kept in the file that BLOCK_SPEED names.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from side_by_side import ALLOWANCE, LIMIT, Step, held_to, record
from torch import Tensor
from torch.nn import functional as F

from harness.blocks import ConvSpec
from harness.blocks.parts.per_sample import Mix, convolve_each
from harness.devices.cpu import processor_name

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("one_thread")]

SAMPLES = 8
PLACES = [(64, 56), (256, 14), (512, 7)]
"""Channels and pixels of a side: a ResNet's first, third and last stage at 224 px."""

BETWEEN = {(256, 14): 1.4}
"""Where neither way is quick: a loop took 0.8 to 1.05 of the grouped convolution's time, from process to process. No
exported model has a loop over a batch of any size."""

ELSEWHERE = {(512, 7): 2.0}
"""In inference, where the processor is not Intel's: the batched product of its library is slower there. On an AMD EPYC it
took 0.96 of a loop's time in the first turn and 1.60 of the loop's shortest of 296."""

Function = Callable[..., Tensor]


def loop(x: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
    return torch.cat([F.conv2d(one[None], kernel, padding=spec.padding) for one, kernel in zip(x, weight, strict=True)])


def grouped(x: Tensor, weight: Tensor, spec: ConvSpec) -> Tensor:
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), padding=spec.padding, groups=len(x))
    return y.reshape(len(x), -1, *y.shape[2:])


def mixed_by_loop(attention: Tensor, experts: Tensor) -> Tensor:
    rows = len(attention) // SAMPLES
    return torch.cat([attention[i * rows : (i + 1) * rows] @ experts for i in range(SAMPLES)])


def stepper(function: Function, tensors: list[Tensor], *rest: ConvSpec) -> Step:
    """Forward and backward."""

    def step() -> float:
        start = time.process_time()
        torch.autograd.grad(function(*tensors, *rest).square().mean(), tensors)
        return time.process_time() - start

    return step


def runner(function: Function, tensors: list[Tensor], *rest: ConvSpec) -> Step:
    """Forward alone."""

    @torch.inference_mode()
    def step() -> float:
        start = time.process_time()
        function(*tensors, *rest)
        return time.process_time() - start

    return step


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "pixels"), PLACES)
@pytest.mark.parametrize(("size", "other"), [(3, loop), (1, grouped)])
def test_applying_kernels_costs_no_more(size: int, other: Function, channels: int, pixels: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, channels, pixels, pixels, requires_grad=True)
    weight = torch.randn(SAMPLES, channels, channels, size, size, requires_grad=True)
    spec = ConvSpec(channels, channels, size)
    torch.testing.assert_close(convolve_each(x, weight, spec), other(x, weight, spec), rtol=1e-3, atol=1e-3)
    plain, ours = (stepper(function, [x, weight], spec) for function in (other, convolve_each))
    limit = BETWEEN.get((channels, pixels), LIMIT * ALLOWANCE)
    name = f"{size}x{size}, {channels} channels, {pixels} px, against {other.__name__}"
    record("per_sample", name, held_to(name, plain, ours, limit))


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "pixels"), [*PLACES, (512, 3)])
def test_applying_kernels_costs_no_more_in_inference(channels: int, pixels: int) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(SAMPLES, channels, pixels, pixels), torch.randn(SAMPLES, channels, channels, 3, 3)]
    plain, ours = (runner(function, tensors, ConvSpec(channels, channels)) for function in (loop, convolve_each))
    name = f"3x3, {channels} channels, {pixels} px, against loop, forward alone"
    limits = BETWEEN if "Intel" in str(processor_name()) else BETWEEN | ELSEWHERE
    limit = limits.get((channels, pixels), LIMIT * ALLOWANCE)
    record("per_sample", name, held_to(name, plain, ours, limit))


@pytest.mark.slow
@pytest.mark.parametrize(("cells", "rows", "elements"), [(56, 9, 64 * 64), (27, 9, 512 * 512)])
def test_mixing_cells_costs_no_more(cells: int, rows: int, elements: int) -> None:
    """The warehouses of a ResNet-18's first and last stage."""
    torch.manual_seed(0)
    attention = torch.randn(SAMPLES * rows, cells, requires_grad=True)
    experts = torch.randn(cells, elements, requires_grad=True)
    tensors = [attention, experts]
    torch.testing.assert_close(Mix()(*tensors), mixed_by_loop(*tensors), rtol=1e-3, atol=1e-3)
    name = f"mixing {cells} cells of {elements}"
    record("per_sample", name, held_to(name, stepper(mixed_by_loop, tensors), stepper(Mix(), tensors)))
