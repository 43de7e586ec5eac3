"""What blocks of several convolutions are put together from: 1x1 convolutions, rows of convolutions, shortcuts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor, nn

from harness.blocks.base import ConvSpec
from harness.blocks.parts.branches import ConvBN, widen

RELU = partial(nn.ReLU, inplace=True)
RELU6 = partial(nn.ReLU6, inplace=True)
"""In place: behind a batch norm, whose output nothing else needs, backward included."""


def point(c_in: int, c_out: int) -> ConvBN:
    """y = bn(W * x), W 1x1: neither strided nor padded, wherever the block stands."""
    return ConvBN(ConvSpec(c_in, c_out, 1))


def in_a_row(stages: Iterable[nn.Module], act: Callable[[], nn.Module] | None = RELU) -> nn.Sequential:
    """One stage after the other with an activation between each two, and none behind the last."""
    row = nn.Sequential()
    for stage in stages:
        if len(row) and act is not None:
            row.append(act())
        row.append(stage)
    return row


def shortcut(x_NCHW: Tensor, spec: ConvSpec) -> Tensor:
    """x as what a block that keeps its shape adds to its output: a margin is zeros around it, or a crop."""
    return widen(x_NCHW, spec.margin, spec.margin)
