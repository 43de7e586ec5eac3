"""Adaptive filters: weighed sums over the window of every output, with weights of its own for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from harness.blocks.base import ConvSpec
from harness.blocks.parts.branches import widen
from harness.blocks.parts.per_sample import MapWork


class WindowSum(MapWork):
    """Weighed sums over the window of every output: the adaptive filter of involution and CARAFE.

    x (N, C, H, W), weights (N, G, k k, P, H', W') -> (N, C P, H', W'), P sums over each window, for consecutive
    channels of the output; G divides C. Windows are placed as the spec's convolution has them.
    """

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x_NCHW: Tensor, weights: Tensor) -> Tensor:
        # under autocast the weights come from a convolution and x may not
        sums: Tensor = _WindowSum.apply(x_NCHW.to(weights.dtype), weights, self.spec)
        return sums


class _WindowSum(torch.autograd.Function):
    """Tap by tap: nothing of the size of k k maps is made, and backward needs no more than the two inputs."""

    @staticmethod
    def forward(x_NCHW: Tensor, weights: Tensor, spec: ConvSpec) -> Tensor:
        batch, groups, _, phases, rows, columns = weights.shape
        x = _padded(x_NCHW, groups, spec)
        exact = _exact(weights.dtype)
        sums = x.new_zeros(batch, groups, x.shape[2], phases, rows, columns, dtype=exact)
        for tap, window in enumerate(_windows(x, rows, columns, spec)):
            sums.addcmul_(window.to(exact), weights[:, :, tap, None].to(exact))
        return sums.reshape(batch, -1, rows, columns).to(weights.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, ConvSpec], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.spec = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad_NCHW: Tensor) -> tuple[Tensor, Tensor, None]:
        x_NCHW, weights = ctx.saved_tensors
        spec: ConvSpec = ctx.spec
        batch, groups, _, phases, rows, columns = weights.shape
        exact = _exact(weights.dtype)
        x = _padded(x_NCHW, groups, spec)
        grad = grad_NCHW.reshape(batch, groups, -1, phases, rows, columns).to(exact)
        x_grad = torch.zeros_like(x, dtype=exact)
        weights_grad = torch.empty_like(weights)
        places = zip(_windows(x, rows, columns, spec), _windows(x_grad, rows, columns, spec), strict=True)
        for tap, (window, window_grad) in enumerate(places):
            weights_grad[:, :, tap] = (grad * window.to(exact)).sum(2)
            for phase in range(phases):
                window_grad[:, :, :, 0].addcmul_(grad[:, :, :, phase], weights[:, :, tap, phase, None].to(exact))
        x_grad_NCHW = x_grad.reshape(batch, -1, *x.shape[4:])
        return widen(x_grad_NCHW, -spec.padding, -spec.padding).to(weights.dtype), weights_grad, None


def _padded(x_NCHW: Tensor, groups: int, spec: ConvSpec) -> Tensor:
    """(N, G, C / G, 1, rows, columns), zeros around the map; contiguous, since windows are read row by row."""
    x = widen(x_NCHW.contiguous(), spec.padding, spec.padding)
    return x.reshape(x.shape[0], groups, -1, 1, *x.shape[2:])


def _windows(x: Tensor, rows: int, columns: int, spec: ConvSpec) -> Iterator[Tensor]:
    """What each tap sees for all the outputs, taps row by row: views of the padded map."""
    for top, left in product(range(0, spec.dilation * spec.kernel_size, spec.dilation), repeat=2):
        bottom, right = top + spec.stride * (rows - 1) + 1, left + spec.stride * (columns - 1) + 1
        yield x[..., top : bottom : spec.stride, left : right : spec.stride]


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What to add up in: 49 taps one by one would lose two of bfloat16's eight bits."""
    return torch.promote_types(dtype, torch.float32)
