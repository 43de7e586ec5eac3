"""What DyRep ranks convolutions by: scores of a weight and its gradient, averaged over training steps.

    synflow     sum of gradient * weight, signed: the authors' choice and name, on the real training loss
    grad_norm   square root of the sum of gradient^2
    snip        sum of |gradient * weight|

Behind a convolution that a batch norm follows directly the loss does not change with the scale of the weight: synflow
is zero there up to that norm's eps, and ranks by it. Compare its decisions only where the gaps are clear.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor, nn

from harness.blocks import Block
from harness.blocks.reparam.dyrep import DyRepBlock, DyRepConv
from harness.models.layers import has_own_reparameterization

SCORES = ("synflow", "grad_norm", "snip")
RANDOM = "random"


class Scores:
    """Scores of each convolution that can be expanded, summed up step by step; for the model as it is now."""

    def __init__(self, model: nn.Module) -> None:
        self.candidates = expandable(model)
        self._sums: dict[str, Tensor] = {}
        self._steps: Counter[str] = Counter()

    @torch.no_grad()
    def record(self) -> None:
        """Add the scores of the gradients that are there now. Nothing waits for the device."""
        for path, conv in self.candidates.items():
            if conv.weight.grad is not None:
                score = _scores(conv.weight, conv.weight.grad)
                self._sums[path] = self._sums[path] + score if path in self._sums else score
                self._steps[path] += 1

    def means(self) -> dict[str, dict[str, float]]:
        """Every score by path, the mean over the steps in which there was a gradient."""
        means = {path: (total / self._steps[path]).tolist() for path, total in self._sums.items()}
        return {path: dict(zip(SCORES, values, strict=True)) for path, values in means.items()}

    def ranked(self, score: str, generator: torch.Generator) -> list[tuple[str, float]]:
        """(path, score), the highest first, in the model's order where equal; without those that are not finite."""
        found = self.means()
        finite = [path for path, scores in found.items() if all(map(math.isfinite, scores.values()))]
        if score == RANDOM:
            numbers = torch.rand(len(finite), generator=generator).tolist()
        else:
            numbers = [found[path][score] for path in finite]
        return sorted(zip(finite, numbers, strict=True), key=lambda item: item[1], reverse=True)


def _scores(weight: Tensor, gradient: Tensor) -> Tensor:
    """(3,), in the order of `SCORES`, in float32 at least."""
    precise = torch.promote_types(weight.dtype, torch.float32)
    gradient = gradient.to(precise)
    product = gradient * weight
    return torch.stack([product.sum(), gradient.square().sum().sqrt(), product.abs().sum()])


def expandable(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions that could be given branches, by the path of what would have them.

    In a model with block `dyrep` those of these blocks that have none. In another one all whose kernel is square and
    larger than 1x1: plain `nn.Conv2d` with zeros around, trainable, alike in rows and columns, without hooks, used
    under one name. Not those inside a block of the harness, nor where a module re-parameterizes itself: that would
    read the convolution's own weight.
    """
    modules = dict(model.named_modules())
    if any(isinstance(module, DyRepBlock) for module in modules.values()):
        own = {path: module for path, module in modules.items() if isinstance(module, DyRepBlock)}
        return {path: block.conv for path, block in own.items() if block.fitting and not block.branches}
    closed = {path for path, module in modules.items() if isinstance(module, Block)}
    closed |= {path for path, module in modules.items() if path and has_own_reparameterization(module)}
    names = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    weights = Counter(id(module.weight) for module in modules.values() if hasattr(module, "weight"))
    return {
        path: module
        for path, module in modules.items()
        if path
        and type(module) is nn.Conv2d
        and _plain(module)
        and names[id(module)] == weights[id(module.weight)] == 1
        and not any(not outer or path.startswith(f"{outer}.") for outer in closed)
    }


def _plain(conv: nn.Conv2d) -> bool:
    rows_and_columns = (conv.kernel_size, conv.stride, conv.dilation, conv.padding)
    return (
        1 < conv.kernel_size[0] <= max(DyRepConv.kernel_sizes)
        and all(not isinstance(sizes, str) and len(set(sizes)) == 1 for sizes in rows_and_columns)
        and conv.padding_mode == "zeros"
        and conv.weight.requires_grad
        and not conv._forward_hooks
        and not conv._forward_pre_hooks
    )
