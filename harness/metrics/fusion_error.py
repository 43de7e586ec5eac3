"""Fusion error: how exactly the train form folds into one convolution.

Fresh batch norms are nearly the identity and hide folding mistakes, so statistics and affines are drawn at random
first. The yardstick is the train form in float64 on the CPU; what is measured is the fused form in the cell's dtype
on the cell's device. Rim and interior are told apart because most folding mistakes live where padding does.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from copy import deepcopy

import torch
from torch import Tensor, nn

from harness.blocks.base import ConvSpec, FusableBlock
from harness.measuring.metric import metric, one
from harness.measuring.subject import Subject
from harness.models import fuse, randomize_statistics
from harness.quantity import Phrase, Quantity, Wording
from harness.records import Form, Kind, Reading, TaskKind

LARGEST_BATCH = 4
"""Exactness does not depend on the batch, and a float64 yardstick on the CPU is slow."""

FUSED: tuple[Form, ...] = ("fused",)


LIMITS = {
    "float64": 1e-12,  # folding is done in float64: some thousand roundings of 1e-16
    "float32": 5e-6,  # a weight is rounded once (6e-8); a convolution sums a few thousand products
    "tf32": 5e-3,  # products keep 10 bits of mantissa (1e-3)
    "float16": 1e-2,  # 10 bits of mantissa, and small weights fall below its normal range
    "bfloat16": 5e-2,  # 7 bits of mantissa (8e-3), summed over branches
}
"""Largest relative error of the fused form, by dtype."""


@metric(
    "fusion_error",
    TaskKind.CELL,
    Quantity(
        "fusion_error",
        "1",
        Kind.BOUNDED,
        forms=FUSED,
        what="relative L2 error of the output",
        limits=LIMITS,
        phrases=(Phrase(Wording.ERROR, verb="folds", negative="does not fold"),),
    ),
    Quantity(
        "fusion_error_max", "1", Kind.BOUNDED, forms=FUSED, what="largest error over largest output", limits=LIMITS
    ),
    Quantity(
        "fusion_error_rim",
        "1",
        Kind.BOUNDED,
        forms=FUSED,
        what="relative L2 error where padding is seen",
        limits=LIMITS,
    ),
    Quantity(
        "fusion_error_interior", "1", Kind.BOUNDED, forms=FUSED, what="relative L2 error elsewhere", limits=LIMITS
    ),
)
def fusion_error(subject: Subject) -> Iterable[Reading]:
    """Relative error of the fused form against the train form in float64, batch norm randomised.

    The first two are of the model's output; rim and interior are of single layers, the worst of them, each layer
    fed with what it saw in the train form.
    """
    trained_in = torch.float64 if subject.dtype == torch.float64 else torch.float32
    model = subject.bare_model().to(trained_in).eval()
    x = subject.input(min(subject.cell.batch_size, LARGEST_BATCH)).cpu()
    randomize_statistics(model, subject.seed, x.to(trained_in))
    fused = subject.placed(fuse(model)).eval()
    exact = deepcopy(model).double().eval()
    inputs = _inputs_of_blocks(exact, x.double())
    with torch.inference_mode():
        wanted, got = exact(x.double()), _run(fused, x, subject)
    yield one("fusion_error", "fused", "1", relative_l2(got, wanted))
    yield one("fusion_error_max", "fused", "1", ((got - wanted).abs().max() / wanted.abs().max()).item())
    yield from _by_layer(subject, exact, fused, inputs)


def relative_l2(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what was wanted; 0 when both are empty or zero."""
    difference, size = float((got - wanted).norm()), float(wanted.norm())
    return difference / size if size else difference


def rim_mask(window: ConvSpec, x: Tensor, y: Tensor) -> Tensor:
    """True at the outputs (H, W) whose window reaches into the padding."""
    rows, columns = (_reaches_out(window, x.shape[axis], y.shape[axis]) for axis in (2, 3))
    return rows[:, None] | columns[None, :]


def _reaches_out(window: ConvSpec, size: int, outputs: int) -> Tensor:
    """For each output along one axis, whether its window begins before or ends after the map."""
    first = torch.arange(outputs) * window.stride - window.padding
    return (first < 0) | (first + window.dilation * (window.kernel_size - 1) >= size)


def _run(module: nn.Module, x: Tensor, subject: Subject) -> Tensor:
    with subject.autocast():
        output: Tensor = module(x.to(subject.device.torch_device, subject.dtype))
    return output.cpu().double()


def _inputs_of_blocks(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What every fusable block sees when the model runs on `x`."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.inference_mode():
        for name, module in model.named_modules():
            if isinstance(module, FusableBlock):
                hook = module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
                stack.callback(hook.remove)
        model(x)
    return seen


def _by_layer(subject: Subject, exact: nn.Module, fused: nn.Module, inputs: dict[str, Tensor]) -> Iterable[Reading]:
    errors: dict[str, dict[str, float]] = {"rim": {}, "interior": {}}
    for name, x in inputs.items():
        block = exact.get_submodule(name)
        assert isinstance(block, FusableBlock)
        with torch.inference_mode():
            wanted, got = block(x), _run(fused.get_submodule(name), x, subject)
        rim = rim_mask(block.window, x, wanted)
        for part, mask in (("rim", rim), ("interior", ~rim)):
            if mask.any():
                errors[part][name] = relative_l2(got[..., mask], wanted[..., mask])
    for part, by_layer in errors.items():
        if by_layer:
            worst = max(by_layer, key=lambda name: by_layer[name])
            yield one(f"fusion_error_{part}", "fused", "1", by_layer[worst], worst_layer=worst, layers=len(by_layer))
