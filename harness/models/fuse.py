"""Fold a model's blocks and batch norms into plain convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from timm.layers import Conv2dSame
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.blocks import FusableBlock, algebra
from harness.errors import Unsupported
from harness.models.layers import LayerChange, has_own_reparameterization, label, replace_module, without_norm
from harness.models.tracing import trace


class NothingToFold(Unsupported):
    """The model has no fused form: its kernels are mixed anew for every sample, or it is plain already."""


FOLDABLE = (nn.Conv2d, Conv2dSame)
"""Convolutions that are linear in the weight they store; a subclass may standardise or mix it first."""


def fuse(model: nn.Module) -> nn.Module:
    """A new model in eval mode, every foldable block and batch norm in a convolution; `model` is left as it is.

    Blocks of this harness become their one convolution, timm's re-parameterizable modules what timm makes of
    them, and a batch norm that alone takes a convolution's output goes into it. Folding is done in float64 on
    the CPU and cast last to the dtypes and devices of `model`; what could be trained before can be afterwards.
    The new model's `fuse_report` is a tuple of `LayerChange`: everything folded, and each batch norm that stays.

    Raises NothingToFold when there is nothing to fold.
    """
    placement = _Placement(model)
    report: list[LayerChange] = []
    with torch.no_grad():
        new = deepcopy(model).eval().to(device=placement.folding_device, dtype=torch.float64)
        new = _fold_blocks(new, report)
        _fold_native(new, placement.folding_device, report)
        _fold_norms(new, report)
        placement.restore(new)
    if not report:
        raise NothingToFold(
            f"nothing in this {type(model).__name__} can be fused",
            remedy="put a block in with harness.swap first, or measure its train form alone",
        )
    report += _remaining_norms(new)
    new.fuse_report = tuple(report)  # type: ignore[assignment]
    return new


def _fold_blocks(new: nn.Module, report: list[LayerChange]) -> nn.Module:
    blocks = {name: module for name, module in new.named_modules() if isinstance(module, FusableBlock)}
    for name, block in blocks.items():
        if any(name.startswith(f"{outer}.") for outer in blocks if outer):
            continue  # part of a block that is folded as a whole
        conv = block.fused()
        new = replace_module(new, name, conv)
        report.append(LayerChange(name, label(block), label(conv), "a block that is one convolution"))
    return new


def _fold_native(new: nn.Module, device: torch.device, report: list[LayerChange]) -> None:
    """timm's own conversion, and without the identity kernels that it leaves attached."""
    before = {
        name: (label(module), {key for key, _ in module.named_parameters()})
        for name, module in new.named_modules()
        if name and has_own_reparameterization(module)
    }
    if not before:
        return
    attached = {id(value) for module in new.modules() for value in vars(module).values() if isinstance(value, Tensor)}
    with _in_float64(device):
        reparameterize_model(new, inplace=True)
    modules = dict(new.named_modules())
    for module in modules.values():
        for key, value in list(vars(module).items()):
            if isinstance(value, Tensor) and id(value) not in attached:
                delattr(module, key)
    for name, (old, parameters) in before.items():
        module_now = modules.get(name)
        if module_now is not None and {key for key, _ in module_now.named_parameters()} != parameters:
            report.append(LayerChange(name, old, f"{label(module_now)}, re-parameterized", "timm's own conversion"))


def _fold_norms(new: nn.Module, report: list[LayerChange]) -> None:
    if not any(isinstance(module, _BatchNorm) for module in new.modules()):
        return
    for use in trace(new, training=False).convs.values():
        if use.norm is None:
            continue
        conv, norm = new.get_submodule(use.name), new.get_submodule(use.norm)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        if type(conv) not in FOLDABLE or norm.running_mean is None:
            continue
        before = f"{label(conv)} + {label(norm)}"
        _fold_pair(conv, norm)
        replace_module(new, use.norm, without_norm(norm))
        report.append(LayerChange(use.name, before, label(conv), f"{use.norm} follows it"))


def _fold_pair(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    if not norm.affine:
        norm.weight = nn.Parameter(torch.ones_like(norm.running_mean))  # type: ignore[arg-type]
        norm.bias = nn.Parameter(torch.zeros_like(norm.running_mean))  # type: ignore[arg-type]
    folded = algebra.fold(conv.weight, norm)
    bias = folded.bias if conv.bias is None else folded.bias + conv.bias * algebra.norm_scale(norm)
    trainable = conv.weight.requires_grad
    conv.weight = nn.Parameter(folded.weight, trainable)
    conv.bias = nn.Parameter(bias, trainable)


def _remaining_norms(new: nn.Module) -> Iterator[LayerChange]:
    for name, module in new.named_modules():
        if isinstance(module, _BatchNorm):
            yield LayerChange(name, label(module), label(module), "no convolution that it alone follows")


@contextmanager
def _in_float64(device: torch.device) -> Iterator[None]:
    """New tensors in float64 on `device`: some of timm's conversions make theirs in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with device, torch.random.fork_rng(devices=[]):  # timm initialises the convolutions that it then fills
            yield
    finally:
        torch.set_default_dtype(before)


class _Placement:
    """Where a model's tensors live, so that a folded one can go back there."""

    def __init__(self, model: nn.Module) -> None:
        self._places: dict[str, tuple[torch.device, torch.dtype]] = {}
        self._frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            # the first tensor under each name speaks for new ones that appear there
            for place in (name, *_ancestors(name)):
                if tensor.is_floating_point():
                    self._places.setdefault(place, (tensor.device, tensor.dtype))
        is_meta = any(device.type == "meta" for device, _ in self._places.values())
        self.folding_device = torch.device("meta" if is_meta else "cpu")

    def restore(self, model: nn.Module) -> None:
        """Each tensor of `model` to the dtype and device of the one it came from; trainable as that one was."""
        for path, module in model.named_modules():
            prefix = f"{path}." if path else ""
            for key, parameter in list(module._parameters.items()):
                if parameter is not None:
                    name = prefix + key
                    module._parameters[key] = nn.Parameter(self._placed(name, parameter), name not in self._frozen)
            for key, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[key] = self._placed(prefix + key, buffer)

    def _placed(self, name: str, tensor: Tensor) -> Tensor:
        device, dtype = next(self._places[place] for place in (name, *_ancestors(name)) if place in self._places)
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else None)


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, -1, -1)]
