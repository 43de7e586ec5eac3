"""Steps of the equations of per-sample blocks, by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def normed(y: Tensor, bn: nn.Module) -> Tensor:
    """The channels are the second axis; statistics of the batch in training, the running ones in eval."""
    axes = [axis for axis in range(y.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(y.ndim)]
    mean, variance = (y.mean(axes), y.var(axes, correction=0)) if bn.training else (bn.running_mean, bn.running_var)
    mean, variance, gamma, beta = (t.reshape(shape) for t in (mean, variance, bn.weight, bn.bias))
    return (y - mean) / torch.sqrt(variance + bn.eps) * gamma + beta


def pool_by_hand(x_CHW: Tensor, side: int) -> Tensor:
    """Means over side x side windows, from floor(i H / side) to ceil((i + 1) H / side), as a vector."""
    _, height, width = x_CHW.shape

    def window(i: int, length: int) -> slice:
        return slice(i * length // side, -(-(i + 1) * length // side))

    rows = [
        torch.stack([x_CHW[:, window(i, height), window(j, width)].mean((1, 2)) for j in range(side)], 1)
        for i in range(side)
    ]
    return torch.stack(rows, 1).flatten()


def check(found: Tensor, wanted: Tensor, x: Tensor, module: nn.Module) -> None:
    """Outputs, and the gradients of the input and of every parameter."""
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    seed = torch.randn_like(found)
    tensors = [x, *module.parameters()]
    gradients = [torch.autograd.grad(y, tensors, seed) for y in (found, wanted)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
