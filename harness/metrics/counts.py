"""Parameters and multiply-accumulates: what a block costs on paper, in both forms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from harness.blocks.parts.per_sample import KernelWork, MapWork
from harness.measuring.metric import metric, one
from harness.measuring.subject import Subject
from harness.memory import meta_copy
from harness.models import fuse
from harness.models.warehouses import WarehouseReport
from harness.quantity import Phrase, Quantity, Theme, Wording
from harness.records import Form, Json, Kind, Reading, TaskKind

BOTH: tuple[Form, ...] = ("train", "fused")


def _forms(subject: Subject) -> Iterable[tuple[Form, nn.Module]]:
    """Both forms without storage: counting needs shapes only."""
    with torch.device("meta"):
        model = subject.bare_model()
    yield "train", model.train()
    if "fused" in subject.forms:
        yield "fused", fuse(meta_copy(model).eval())


@metric(
    "params",
    TaskKind.CELL,
    Quantity(
        "params",
        "1",
        Kind.COUNT,
        forms=BOTH,
        what="parameters",
        rank=110,
        phrases=(Phrase(Wording.COUNT, "parameters", rank=10),),
    ),
    on_device=False,
)
def params(subject: Subject) -> Iterable[Reading]:
    """Parameters of the whole model, buffers left out; of shared warehouses what each is made of, as a fact."""
    for form, model in _forms(subject):
        yield one("params", form, "1", sum(p.numel() for p in model.parameters()), **_warehouses(model))


def _warehouses(model: nn.Module) -> dict[str, Json]:
    reports: tuple[WarehouseReport, ...] = getattr(model, "warehouse_report", ())
    return {"warehouses": [report.summary for report in reports]} if reports else {}


@metric(
    "macs",
    TaskKind.CELL,
    Quantity(
        "macs",
        "MAC",
        Kind.COUNT,
        forms=BOTH,
        what="multiply-accumulates of a forward pass, for one image",
        rank=90,
        theme=Theme.RUN,
        phrases=(Phrase(Wording.COUNT, "MACs", rank=20),),
    ),
    Quantity(
        "macs_kernel",
        "MAC",
        Kind.COUNT,
        forms=BOTH,
        what="multiply-accumulates a pass spends on composing kernels",
        theme=Theme.RUN,
    ),
    Quantity(
        "macs_mixing",
        "MAC",
        Kind.COUNT,
        forms=BOTH,
        what="multiply-accumulates that make an image its own kernels; beside macs",
        rank=100,
        theme=Theme.RUN,
    ),
    Quantity(
        "winograd_muls",
        "MAC",
        Kind.COUNT,
        forms=BOTH,
        what="macs, 3x3 at stride 1 counted 4/9: Winograd F(2x2, 3x3)",
        theme=Theme.RUN,
    ),
    on_device=False,
)
def macs(subject: Subject) -> Iterable[Reading]:
    """Multiply-accumulates of convolutions and matrix products in a forward pass.

    Dynamic convolutions make each image kernels of its own: what that takes, products of elements included, is
    `macs_mixing` and not in `macs`. There, too, the products of elements count that stand in for a convolution.
    What grows with the batch is the work per image; what does not is the composition of kernels, paid once
    a pass. Normalisation, activation and pooling are not counted, as in the papers. Winograd's multiplications are
    theoretical (arXiv:2101.03697, section 3): whether a library uses that algorithm is its own affair.
    """
    for form, model in _forms(subject):
        # 2 and 3 images: batch norm refuses a single value per channel in training
        two, three = (_forward_macs(subject, model, batch) for batch in (2, 3))
        yield one("macs", form, "MAC", three.plain - two.plain)
        yield one("macs_kernel", form, "MAC", 3 * two.plain - 2 * three.plain)
        if three.mixing:
            yield one("macs_mixing", form, "MAC", three.mixing - two.mixing)
        yield one("winograd_muls", form, "MAC", three.winograd - two.winograd)


class _Macs(NamedTuple):
    plain: int
    mixing: int
    winograd: int


def _forward_macs(subject: Subject, model: nn.Module, batch: int) -> _Macs:
    """Forward only: torch's counter is wrong backward for grouped convolutions."""
    x = torch.empty(subject.input_shape(batch), device="meta")
    plain = FlopCounterMode(display=False, custom_mapping={**ELEMENTWISE, **DEFORMED})
    winograd = FlopCounterMode(display=False, custom_mapping={**ELEMENTWISE, **DEFORMED, **WINOGRAD})
    with plain, winograd, torch.no_grad():
        model(x)
    muls, _ = _work(model, winograd)
    return _Macs(*_work(model, plain), muls)


def _work(model: nn.Module, counter: FlopCounterMode) -> tuple[int, int]:
    """What was spent on the map and what on kernels.

    Products of elements count only inside modules that say that they are one or the other.
    """
    counts = counter.get_flop_counts()
    whole = _macs_of(counts["Global"], elementwise=False)
    kernels, apart = (
        sum(_macs_of(counts.get(name, {}), elementwise) for name in _marked(model, KernelWork))
        for elementwise in (True, False)
    )
    products = sum(counts.get(name, {}).get(op, 0) // 2 for name in _marked(model, MapWork) for op in ELEMENTWISE)
    return whole - apart + products, kernels


def _macs_of(counts: Mapping[Any, int], elementwise: bool) -> int:
    return sum(flops for op, flops in counts.items() if elementwise or op not in ELEMENTWISE) // 2


def _marked(model: nn.Module, mark: type[nn.Module]) -> list[str]:
    """Modules of that kind, none inside another, as the counter calls them."""
    names = [name for name, module in model.named_modules() if isinstance(module, mark)]
    root = type(model).__name__
    return [
        f"{root}.{name}" if name else root
        for name in names
        if not any(name.startswith(f"{other}.") or not other for other in names if other != name)
    ]


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


def _deformed_flops(x: Sequence[int], weight: Sequence[int], *rest: Any, out_shape: Sequence[int], **more: Any) -> int:
    """As of the convolution; what interpolates between pixels is not counted."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _product_flops(*shapes: Any, out_shape: Sequence[int], **more: Any) -> int:
    """A product of elements takes a multiply-accumulate for each of its results."""
    return 2 * math.prod(out_shape)


aten = torch.ops.aten
ELEMENTWISE = {aten.mul: _product_flops, aten.addcmul_: _product_flops}
DEFORMED = {torch.ops.torchvision.deform_conv2d: _deformed_flops}
WINOGRAD = {aten.convolution: _winograd_flops, aten._convolution: _winograd_flops}
