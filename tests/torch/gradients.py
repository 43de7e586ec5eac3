"""Outputs with all gradients, to be compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.blocks.parts.linear_branches import COMPONENTS


def with_gradients(block: nn.Module, x: Tensor, direction: Tensor) -> list[Tensor]:
    """Outputs and the gradients of the input and of every parameter that has one."""
    x = x.clone().requires_grad_()
    y = block(x)
    found = torch.autograd.grad((y * direction).sum(), [x, *block.parameters()], allow_unused=True)
    return [y, *(torch.zeros(()) if gradient is None else gradient for gradient in found)]


def switches(used: tuple[str, ...], names: tuple[str, ...] = tuple(COMPONENTS)) -> dict[str, bool]:
    return {name: name in used for name in names}


def named_gradients(y: Tensor, x: Tensor, module: nn.Module) -> dict[str, Tensor]:
    """The output, and the gradients of the input and of every parameter."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad((y * weights + y**2).sum(), [x, *parameters])
    return dict(zip(["y", "x", *names], [y, *gradients], strict=True))


def agree(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert list(found) == list(wanted)
    largest = max(tensor.abs().max().item() for tensor in wanted.values())
    for name, tensor in found.items():
        assert (tensor - wanted[name]).abs().max().item() <= tolerance * largest, name
