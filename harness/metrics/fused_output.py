"""Fused output: what a cell's fused form computes, in numbers few enough to be kept in git.

`fusion_error` holds the fused form against the train form: a change that both share (another initialisation, another
eps, another branch) leaves it as small as ever. These numbers are held against those of an earlier run instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.measuring.metric import metric, one
from harness.measuring.subject import Subject
from harness.metrics.fusion_error import LARGEST_BATCH
from harness.models import fuse, randomize_statistics
from harness.quantity import Quantity
from harness.records import Kind, Reading, TaskKind, Variant

PROJECTIONS = 16
"""A change spread over the output hides from one direction with luck: from all of them, within a hundredth of its
size, once in 10^33."""

DIRECTIONS_SEED = 20220
"""Of the directions, which are the same for every cell: only the size of the output matters to them."""


@metric(
    "fused_output",
    TaskKind.CELL,
    Quantity(
        "fused_output",
        "1",
        Kind.CLOSE,
        forms=("fused", "train"),
        what="root mean square of the fused form's output, then its projections on 16 fixed directions",
    ),
)
def fused_output(subject: Subject) -> Iterable[Reading]:
    """What the fused form computes, as 17 numbers that see a change of any element of its output.

    Where nothing folds they are of the train form in eval mode.

    The weights are the seed's, the batch norms lived in, everything is in float64 on the CPU: the cell's device,
    dtype and memory format do not matter, so that the numbers of one machine hold on another.
    """
    plain = replace(subject.cell, device=Variant("cpu"), dtype="float32", memory_format="contiguous")
    here = Subject(plain, subject.seed)
    form = here.forms[-1]
    x = here.input(min(plain.batch_size, LARGEST_BATCH)).double()
    # float64 before anything is computed: all that machines can differ in are then the drawn weights' last bits
    model = here.bare_model().double().eval()
    _live_in(model, subject.seed, x)
    with torch.inference_mode():
        y = (fuse(model).eval() if form == "fused" else model)(x)
    yield one("fused_output", form, "1", signature(y), seed=subject.seed, images=len(x), image_size=plain.image_size)


@torch.no_grad()
def _live_in(model: nn.Module, seed: int, x_NCHW: Tensor) -> None:
    """Norms and biases drawn as `fusion_error` draws them, and moved by what the model begins with.

    The drawing alone would hide another first value. A weight that begins at 0 ends half as large as one that begins
    at 1: no branch vanishes, and where all begin at 1 nothing is moved.
    """
    first = {name: parameter.clone() for name, parameter in model.named_parameters()}
    randomize_statistics(model, seed, x_NCHW)
    scales = {id(module.weight) for module in model.modules() if isinstance(module, _BatchNorm) and module.affine}
    for name, parameter in model.named_parameters():
        if id(parameter) in scales:
            parameter.add_(first[name] - 1, alpha=0.5)
        elif not torch.equal(parameter, first[name]):
            parameter.add_(first[name])


def signature(y: Tensor) -> list[float]:
    """The root mean square of `y` (float64), then its inner products with directions of +-1 over its norm.

    A projection is of the order of 1, and every element has a part in all of them: a change of one by d moves each by
    d over the norm, where a sample of elements would miss it. The signs come from whole numbers, which every machine
    draws alike.
    """
    flat = y.flatten()
    norm = float(flat.norm())
    generator = torch.Generator().manual_seed(DIRECTIONS_SEED)
    products = []
    for _ in range(PROJECTIONS):
        signs = torch.randint(2, flat.shape, generator=generator, dtype=torch.int8)
        products.append(float(flat @ signs.mul_(2).sub_(1).to(flat.dtype)))
    return [norm / math.sqrt(flat.numel()), *(product / norm if norm else product for product in products)]
