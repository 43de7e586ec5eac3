"""Parameters and multiply-accumulates: what a block costs on paper, in both forms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from harness.memory import meta_copy
from harness.metrics.base import metric, one
from harness.metrics.subject import Subject
from harness.models import fuse
from harness.records import Form, Kind, Quantity, Reading, TaskKind

BOTH: tuple[Form, ...] = ("train", "fused")


def _forms(subject: Subject) -> Iterable[tuple[Form, nn.Module]]:
    """Both forms without storage: counting needs shapes only."""
    with torch.device("meta"):
        model = subject.bare_model()
    yield "train", model.train()
    yield "fused", fuse(meta_copy(model).eval())


@metric("params", TaskKind.CELL, Quantity("params", "1", Kind.COUNT, forms=BOTH, what="parameters"), on_device=False)
def params(subject: Subject) -> Iterable[Reading]:
    """Parameters of the whole model, buffers left out."""
    for form, model in _forms(subject):
        yield one("params", form, "1", sum(p.numel() for p in model.parameters()))


@metric(
    "macs",
    TaskKind.CELL,
    Quantity("macs", "MAC", Kind.COUNT, forms=BOTH, what="multiply-accumulates of a forward pass, for one image"),
    Quantity(
        "macs_kernel", "MAC", Kind.COUNT, forms=BOTH, what="multiply-accumulates a pass spends on composing kernels"
    ),
    Quantity(
        "winograd_muls", "MAC", Kind.COUNT, forms=BOTH, what="macs, 3x3 at stride 1 counted 4/9: Winograd F(2x2, 3x3)"
    ),
    on_device=False,
)
def macs(subject: Subject) -> Iterable[Reading]:
    """Multiply-accumulates of convolutions and matrix products in a forward pass.

    What grows with the batch is the work per image; what does not is the composition of kernels, paid once
    a pass. Normalisation, activation and pooling are not counted, as in the papers. Winograd's multiplications are
    theoretical (arXiv:2101.03697, section 3): whether a library uses that algorithm is its own affair.
    """
    for form, model in _forms(subject):
        # 2 and 3 images: batch norm refuses a single value per channel in training
        two, three = (_forward_macs(subject, model, batch) for batch in (2, 3))
        yield one("macs", form, "MAC", three.plain - two.plain)
        yield one("macs_kernel", form, "MAC", 3 * two.plain - 2 * three.plain)
        yield one("winograd_muls", form, "MAC", three.winograd - two.winograd)


class _Macs(NamedTuple):
    plain: int
    winograd: int


def _forward_macs(subject: Subject, model: nn.Module, batch: int) -> _Macs:
    """Forward only: torch's counter is wrong backward for grouped convolutions."""
    x = torch.empty(subject.input_shape(batch), device="meta")
    plain, winograd = FlopCounterMode(display=False), FlopCounterMode(display=False, custom_mapping=WINOGRAD)
    with plain, winograd, torch.no_grad():
        model(x)
    return _Macs(int(plain.get_total_flops()) // 2, int(winograd.get_total_flops()) // 2)


def _winograd_flops(
    x: Sequence[int],
    weight: Sequence[int],
    bias: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    *rest: Any,
    out_shape: Sequence[int],
    **more: Any,
) -> int:
    """Of one convolution, twice its multiplications by F(2x2, 3x3) where that applies: 16 for 4 outputs, not 36."""
    flops = int(conv_flop_count(list(x), list(weight), list(out_shape), transposed))
    applies = tuple(weight[2:]) == (3, 3) and set(stride) == set(dilation) == {1} and not transposed
    return flops * 4 // 9 if applies else flops


aten = torch.ops.aten
WINOGRAD = {aten.convolution: _winograd_flops, aten._convolution: _winograd_flops}
