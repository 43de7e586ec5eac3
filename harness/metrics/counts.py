"""Parameters and multiply-accumulates: what a block costs on paper, in both forms."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

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


@metric("params", TaskKind.CELL, Quantity("params", "1", Kind.COUNT, forms=BOTH, what="parameters"))
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
)
def macs(subject: Subject) -> Iterable[Reading]:
    """Multiply-accumulates of convolutions and matrix products in a forward pass.

    What grows with the batch is the work per image; what does not is the composition of kernels, paid once
    a pass. Normalisation, activation and pooling are not counted, as in the papers.
    """
    for form, model in _forms(subject):
        # 2 and 3 images: batch norm refuses a single value per channel in training
        two, three = (_forward_macs(subject, model, batch) for batch in (2, 3))
        yield one("macs", form, "MAC", three - two)
        yield one("macs_kernel", form, "MAC", 3 * two - 2 * three)


def _forward_macs(subject: Subject, model: nn.Module, batch: int) -> int:
    """Forward only: torch's counter is wrong backward for grouped convolutions."""
    cell = subject.cell
    channels = cell.backbone.options.get("c_in", 64) if subject.is_layer else 3
    x = torch.empty(batch, channels, cell.image_size, cell.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return int(counter.get_total_flops()) // 2
