"""Kernels mixed from n experts, each a whole kernel of the layer: what CondConv, DY-Conv and ODConv have in common."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Self

import torch
from torch import Tensor, nn

from harness.blocks.base import ConvSpec, name_of
from harness.blocks.declared import Choice
from harness.blocks.parts.per_sample import Mix, PerSampleBlock
from harness.errors import Unsupported


class ExpertBlock(PerSampleBlock):
    """A block with `count` kernels to mix, `experts` (count, c_out * c_in / groups * k * k).

    A row of `experts` is a weight (c_out, c_in / groups, k, k) in row-major order; `initialise` fills one in place.
    """

    def __init__(self, spec: ConvSpec, count: int, initialise: Callable[[Tensor], object], **options: Choice) -> None:
        super().__init__(spec, **options)
        self.kernel_shape = (spec.c_out, spec.c_in // spec.groups, spec.kernel_size, spec.kernel_size)
        experts = torch.empty(count, prod(self.kernel_shape))
        for row in range(count):
            initialise(experts[row].view(self.kernel_shape))
        self.experts = nn.Parameter(experts)
        self.mix = Mix()

    def mixed(self, attention_NE: Tensor) -> Tensor:
        """A kernel for each sample, sum_n attention_n W_n: (N, c_out, c_in / groups, k, k)."""
        kernels: Tensor = self.mix(attention_NE, self.experts)
        return kernels.reshape(-1, *self.kernel_shape)

    @torch.no_grad()
    def from_static(self, weight_OIHW: Tensor) -> Self:
        """Start every expert from the weight of a static convolution in the same place, say a pretrained one.

        The block then computes that convolution times what its attention does beside choosing among experts. Equal
        experts part in training, because each gets the gradient times its own attention. Attention and batch norm
        stay as they are. Returns the block. Raises Unsupported for a weight of another shape.
        """
        if tuple(weight_OIHW.shape) != self.kernel_shape:
            problem = f"a weight {tuple(weight_OIHW.shape)} is not one of block {name_of(type(self))}"
            raise Unsupported(problem, remedy=f"use a weight (c_out, c_in / groups, k, k) = {self.kernel_shape}")
        self.experts.copy_(weight_OIHW.reshape(1, -1))
        return self


def fan_out_linear(c_in: int, c_out: int, bias: bool = True) -> nn.Linear:
    """A layer of an attention, kaiming normal by its fan-out, bias zero: the 1x1 that it is in the original code."""
    linear = nn.Linear(c_in, c_out, bias)
    nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
