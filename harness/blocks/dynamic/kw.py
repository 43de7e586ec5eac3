"""KernelWarehouse: each kernel is put together from cells, linear mixtures of a warehouse that layers may share.

    y_n = bn(W_n * x_n)
    cell of W_n in row i = sum_j a_ij E_j,   j = 1..n                       E (n, cells) the warehouse
    z = V relu(norm(U mean(x_n))) + v,       U (h, I), V (m (n + 1), h), h = max(I / 16, 16)
    a_ij = (1 - T) z_ij / (sum_j |z_ij| + 1e-3) + T beta_ij                 j = 1..n + 1

m rows, n cells and beta as in parts/warehouse.py; the layers are in parts/warehouse_layers.py. Attention may be
negative, and the last of its n + 1 entries stands for no cell at all: the sum over the others is below 1. U has a bias
exactly where the norm is a layer norm. T falls linearly from 1 to 0, batch by batch, over the first 20 of 300 epochs:
at first a kernel is a plain one, each row a cell of its own.

The block has a warehouse of its own; harness.models.warehouses lets a network's layers share theirs, as the paper
does. Ratios below 1 halve the cells in both directions, as the authors' ResNet18 does: four times the rows.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Li and Yao, KernelWarehouse, ICML 2024, arXiv:2406.07879; initialisation and settings as in the authors' code.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from torch import Tensor

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.per_sample import PerSampleBlock
from harness.blocks.parts.warehouse import Ratios, Warehouse, layout_for, ratio_of
from harness.blocks.parts.warehouse_layers import AttentionSettings, KWConv2d


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
        self.warehouse = Warehouse(layout_for([spec], ratios_of(b)))
        self.conv = KWConv2d(spec, self.warehouse, 0, AttentionSettings(norm=attention_norm), bias=False)

    def convolved(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.conv(x_NCHW)
        return y_NCHW


def ratios_of(b: Fraction) -> Ratios:
    """Whole cells with b >= 1; halved in both directions below, as in the authors' ResNets."""
    return Ratios(b) if b >= 1 else Ratios(b, Fraction(1, 2), Fraction(1, 2))
