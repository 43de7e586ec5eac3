"""Layers whose kernels come from a warehouse that they may share: a convolution, a linear layer, their attention.

The equations are in dynamic/kw.py. `NonLocalRows` makes the n + 1 entries of a row with fewer parameters where a layer
shares its warehouse: those of its own cells by V, the others by a third matrix from a basis that V makes.
Paper: Li and Yao, KernelWarehouse, ICML 2024, arXiv:2406.07879; initialisation and settings as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from harness.blocks.base import ConvSpec
from harness.blocks.parts.per_sample import Mix, Schedule, Tempered, convolve_each, pooled, vector_norm
from harness.blocks.parts.warehouse import LayerCells, Warehouse, beta

LEAST_WIDTH = 16
"""Of the vector inside an attention, and of a basis."""

SCHEDULE = Schedule(1, 0, 20, 300)
"""T of ResNets and ConvNeXts."""


@dataclass(frozen=True)
class AttentionSettings:
    """How attentions in a network are made. basis: the part of the others' cells that a row's basis has."""

    reduction: Fraction = Fraction(1, 16)
    norm: Literal["batch", "layer"] = "batch"
    basis: Fraction | None = None
    schedule: Schedule = SCHEDULE


class ContrastingAttention(Tempered):
    """Vectors (N, c_in) -> attention (N rows, cells), each row's absolute values summing to less than 1 at T = 0."""

    beta: Tensor

    def __init__(self, c_in: int, part: LayerCells, cells: int, settings: AttentionSettings) -> None:
        super().__init__(settings.schedule)
        width = max(int(c_in * settings.reduction), LEAST_WIDTH)
        self.reduce = nn.Linear(c_in, width, bias=settings.norm == "layer")
        self.norm = vector_norm(settings.norm, width)
        self.act = nn.ReLU()
        shared = part.cells < cells
        if settings.basis is not None and shared:
            self.rows: nn.Module = NonLocalRows(width, part, cells, settings.basis)
        else:
            self.rows = nn.Linear(width, part.rows * (cells + 1))
        self.register_buffer("beta", beta(part, cells))
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
    """Rows of cells + 1 entries: [spread(basis) | own | spread(basis) | none] + bias, own from `part.first` on."""

    def __init__(self, width: int, part: LayerCells, cells: int, ratio: Fraction) -> None:
        super().__init__()
        others = cells - part.cells
        basis = max(int(others * ratio), LEAST_WIDTH)
        self.part = part
        self.widths = (part.cells, basis, 1)
        self.expand = nn.Linear(width, part.rows * sum(self.widths), bias=False)
        self.spread = nn.Linear(basis, others, bias=False)
        self.bias = nn.Parameter(torch.zeros(part.rows * (cells + 1)))

    def forward(self, x_NC: Tensor) -> Tensor:
        rows = self.expand(x_NC).reshape(-1, self.part.rows, sum(self.widths))
        own, basis, none = rows.split(self.widths, -1)
        others, first = self.spread(basis), self.part.first
        whole = torch.cat([others[..., :first], own, others[..., first:], none], -1)
        return whole.flatten(1) + self.bias


class KWLayer(nn.Module):
    """A layer without weights: its kernels come from a warehouse, of which it has the `index`-th part.

    The warehouse is not registered here, so that layers can share it, but copies and pickles of a network keep it
    one: it is copied with whatever holds it. `bias` is static, starts at zero, and is added behind the layer.
    """

    def __init__(
        self, spec: ConvSpec, warehouse: Warehouse, index: int, settings: AttentionSettings, bias: bool
    ) -> None:
        super().__init__()
        self.spec = spec
        self._warehouse = (warehouse,)  # in a tuple, where nn.Module does not look for modules
        layout = warehouse.layout
        self.attention = ContrastingAttention(spec.c_in, layout.layers[index], layout.cells, settings)
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

    @property
    def label(self) -> str:
        """In a few words: ``kw(64, 128, 3x3)``."""
        s = self.spec
        return f"kw({s.c_in}, {s.c_out}, {s.kernel_size}x{s.kernel_size})"

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
        self, c_in: int, c_out: int, warehouse: Warehouse, index: int, settings: AttentionSettings, bias: bool
    ) -> None:
        super().__init__(ConvSpec(c_in, c_out, 1), warehouse, index, settings, bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens_NTC = x.reshape(x.shape[0], -1, x.shape[-1])
        matrix_NOI = self.kernels(tokens_NTC.mean(1)).flatten(2)
        y = torch.bmm(tokens_NTC, matrix_NOI.transpose(1, 2)).reshape(*x.shape[:-1], self.spec.c_out)
        return y if self.bias is None else y + self.bias.to(y.dtype)
