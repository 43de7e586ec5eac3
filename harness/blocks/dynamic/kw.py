"""KernelWarehouse: each kernel is put together from cells, linear mixtures of a warehouse that layers may share.

    y_n = bn(W_n * x_n)
    cell of W_n in row i = sum_j a_ij E_j,   j = 1..n                       E (n, cells) the warehouse
    z = V relu(norm(U mean(x_n))) + v,       U (h, I), V (m (n + 1), h), h = max(I / 16, 16)
    a_ij = (1 - T) z_ij / (sum_j |z_ij| + 1e-3) + T beta_ij                 j = 1..n + 1

m rows, n cells and beta as in warehouse.py. Attention may be negative, and the last of its n + 1 entries stands for
no cell at all: the sum over the others is below 1. U has a bias exactly where the norm is a layer norm. T falls
linearly from 1 to 0, batch by batch, over the first 20 of 300 epochs: at first a kernel is a plain one, each row a
cell of its own.

`NonLocalRows` makes the n + 1 entries of a row with fewer parameters where a layer shares its warehouse: those of its
own slice by V, the others by a third matrix from a basis that V makes.

The block has a warehouse of its own; harness.models.warehouses lets a network's layers share theirs, as the paper
does. Ratios below 1 halve the cells in both directions, as the authors' ResNet18 does: four times the rows.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Li and Yao, KernelWarehouse, ICML 2024, arXiv:2406.07879; initialisation and settings as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.per_sample import Mix, PerSampleBlock, Schedule, Tempered, convolve_each, pooled, vector_norm
from harness.blocks.parts.warehouse import Ratios, Share, Warehouse, beta, lay_out, ratio_of

NARROWEST = 16
"""Of the vector inside an attention, and of a basis."""

FALLING = Schedule(1, 0, 20, 300)
"""T of ResNets and ConvNeXts."""


@dataclass(frozen=True)
class Attending:
    """How the layers of a network attend. basis: the part of the others' cells that a row's basis has."""

    reduction: Fraction = Fraction(1, 16)
    norm: Literal["batch", "layer"] = "batch"
    basis: Fraction | None = None
    schedule: Schedule = FALLING


class ContrastingAttention(Tempered):
    """Vectors (N, c_in) -> attention (N rows, cells), each row's absolute values summing to less than 1 at T = 0."""

    beta: Tensor

    def __init__(self, c_in: int, share: Share, cells: int, attending: Attending) -> None:
        super().__init__(attending.schedule)
        width = max(int(c_in * attending.reduction), NARROWEST)
        self.reduce = nn.Linear(c_in, width, bias=attending.norm == "layer")
        self.norm = vector_norm(attending.norm, width)
        self.act = nn.ReLU()
        shared = share.cells < cells
        if attending.basis is not None and shared:
            self.rows: nn.Module = NonLocalRows(width, share, cells, attending.basis)
        else:
            self.rows = nn.Linear(width, share.rows * (cells + 1))
        self.register_buffer("beta", beta(share, cells))
        for linear in self.modules():
            if isinstance(linear, nn.Linear):
                nn.init.kaiming_normal_(linear.weight, mode="fan_out")
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(self, vectors_NC: Tensor) -> Tensor:
        z: Tensor = self.rows(self.act(self.norm(self.reduce(vectors_NC)))).reshape(-1, *self.beta.shape)
        contrasts = z / (z.abs().sum(-1, keepdim=True) + 1e-3)
        start, temperature = (each.to(contrasts.dtype) for each in (self.beta, self.temperature))  # autocast keeps them
        attention = torch.lerp(contrasts, start, temperature)  # exactly beta at T = 1
        return attention[..., :-1].reshape(-1, self.beta.shape[1] - 1)


class NonLocalRows(nn.Module):
    """Rows of cells + 1 entries: [spread(basis) | own | spread(basis) | none] + bias, own from `share.first` on."""

    def __init__(self, width: int, share: Share, cells: int, ratio: Fraction) -> None:
        super().__init__()
        others = cells - share.cells
        basis = max(int(others * ratio), NARROWEST)
        self.share = share
        self.parts = (share.cells, basis, 1)
        self.expand = nn.Linear(width, share.rows * sum(self.parts), bias=False)
        self.spread = nn.Linear(basis, others, bias=False)
        self.bias = nn.Parameter(torch.zeros(share.rows * (cells + 1)))

    def forward(self, x_NC: Tensor) -> Tensor:
        rows = self.expand(x_NC).reshape(-1, self.share.rows, sum(self.parts))
        own, basis, none = rows.split(self.parts, -1)
        others, first = self.spread(basis), self.share.first
        whole = torch.cat([others[..., :first], own, others[..., first:], none], -1)
        return whole.flatten(1) + self.bias


class KWLayer(nn.Module):
    """A layer without weights: its kernels come from a warehouse, of which it has the `index`-th share.

    The warehouse is not registered here, so that layers can share it, but copies and pickles of a network keep it
    one: it is copied with whatever holds it. `bias` is static, starts at zero, and is added behind the layer.
    """

    def __init__(self, spec: ConvSpec, warehouse: Warehouse, index: int, attending: Attending, bias: bool) -> None:
        super().__init__()
        self.spec = spec
        self._warehouse = (warehouse,)  # in a tuple, where nn.Module does not look for modules
        layout = warehouse.layout
        self.attention = ContrastingAttention(spec.c_in, layout.shares[index], layout.cells, attending)
        self.mix = Mix()
        self.bias = nn.Parameter(torch.zeros(spec.c_out)) if bias else None

    @property
    def warehouse(self) -> Warehouse:
        return self._warehouse[0]

    def kernels(self, vectors_NC: Tensor) -> Tensor:
        """(N, c_out, c_in / groups, k, k) from what the attention looks at."""
        layout, spec = self.warehouse.layout, self.spec
        k, into = spec.kernel_size, spec.c_in // spec.groups
        cells: Tensor = self.mix(self.attention(vectors_NC), self.warehouse.cells)
        grid = cells.reshape(-1, k * k, spec.c_out // layout.c_out, into // layout.c_in, layout.c_out, layout.c_in)
        return grid.permute(0, 2, 4, 3, 5, 1).reshape(-1, spec.c_out, into, k, k)

    def extra_repr(self) -> str:
        return f"{self.spec}, bias={self.bias is not None}"


class KWConv2d(KWLayer):
    """x (N, c_in, H, W) -> (N, c_out, H', W')."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = convolve_each(x_NCHW, self.kernels(pooled(x_NCHW)), self.spec)
        return y_NCHW if self.bias is None else y_NCHW + self.bias.to(y_NCHW.dtype)[:, None, None]


class KWLinear(KWLayer):
    """x (N, ..., c_in) -> (N, ..., c_out): all that stands between the first axis and the last are tokens of a sample.

    One matrix per sample, by the mean over its tokens: a 1x1 KWConv2d.
    """

    def __init__(
        self, c_in: int, c_out: int, warehouse: Warehouse, index: int, attending: Attending, bias: bool
    ) -> None:
        super().__init__(ConvSpec(c_in, c_out, 1), warehouse, index, attending, bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens_NTC = x.reshape(x.shape[0], -1, x.shape[-1])
        matrix_NOI = self.kernels(tokens_NTC.mean(1)).flatten(2)
        y = torch.bmm(tokens_NTC, matrix_NOI.transpose(1, 2)).reshape(*x.shape[:-1], self.spec.c_out)
        return y if self.bias is None else y + self.bias.to(y.dtype)


@BLOCKS.register("kw")
class KW(PerSampleBlock):
    paper = "Li and Yao, KernelWarehouse: Rethinking the Design of Dynamic Convolution, ICML 2024, arXiv:2406.07879"
    shared_state = "warehouses"
    keeps_kernel_sizes = True

    def __init__(
        self,
        spec: ConvSpec,
        *,
        ratio: Annotated[
            Literal["1/4", "1/2", 1, 2, 4], "cells in the warehouse by places in the kernel; below 1 halves the cells"
        ] = 1,
        attention_norm: Annotated[
            Literal["batch", "layer"], "in the attention; layer trains on a batch of 1"
        ] = "batch",
    ) -> None:
        super().__init__(spec, ratio=ratio, attention_norm=attention_norm)
        b = ratio_of(ratio)
        self.warehouse = Warehouse(lay_out([spec], ratios_of(b)))
        self.conv = KWConv2d(spec, self.warehouse, 0, Attending(norm=attention_norm), bias=False)

    def convolved(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.conv(x_NCHW)
        return y_NCHW


def ratios_of(b: Fraction) -> Ratios:
    """Whole cells with b >= 1; halved in both directions below, as in the authors' ResNets."""
    return Ratios(b) if b >= 1 else Ratios(b, Fraction(1, 2), Fraction(1, 2))
