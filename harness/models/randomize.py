"""Models as after some training: a fresh batch norm is nearly the identity, a branch that starts at zero is not there.

Both hide folding mistakes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def randomize_statistics(model: nn.Module, seed: int = 0, x_NCHW: Tensor | None = None) -> nn.Module:
    """`model` itself, its batch norms, biases and zeros drawn from `seed`, the same on every device and in every dtype.

    Weights of batch norms N(1, 0.2), all biases and whatever starts at zero N(0, 0.1), running variances U(0.5, 1.5),
    running means N(0, 0.3). With an input the latter two are in units of the root mean square that each norm sees in
    one evaluation of the model on it: then activations neither vanish nor overflow, however deep and branched the net.
    Modes stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            _randomize_norm(module, generator)
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("bias") or not parameter.any():
                _draw(parameter, generator, 0.0, 0.1)
    if x_NCHW is not None:
        _rescale(model, x_NCHW)
    return model


def _randomize_norm(norm: _BatchNorm, generator: torch.Generator) -> None:
    if norm.affine:
        _draw(norm.weight, generator, 1.0, 0.2)
    if norm.running_mean is not None and norm.running_var is not None:
        _draw(norm.running_mean, generator, 0.0, 0.3)
        norm.running_var.copy_(0.5 + torch.rand(norm.running_var.shape, generator=generator, dtype=torch.float64))


def _draw(tensor: Tensor, generator: torch.Generator, mean: float, deviation: float) -> None:
    """Fill from float64 on the CPU, so that a seed means the same numbers everywhere."""
    tensor.copy_(mean + deviation * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))


def _rescale(model: nn.Module, x_NCHW: Tensor) -> None:
    """Evaluate once, each norm taking on the scale of its input before it runs: nothing adds up over the layers."""
    handles = [
        module.register_forward_pre_hook(_take_scale) for module in model.modules() if isinstance(module, _BatchNorm)
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()(x_NCHW)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def _take_scale(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return
    precise = torch.promote_types(args[0].dtype, torch.float32)  # mps has no float64
    # The layer's root mean square, and no channel's own mean: the channels of a fresh deep net hardly differ between
    # images, and to take their means away and divide by so little would blow up every rounding error, layer by layer.
    scale = args[0].to(precise).square().mean().sqrt().clamp(min=torch.finfo(precise).tiny)
    mean.copy_(mean.to(precise) * scale)
    variance.copy_(variance.to(precise) * scale.square())
