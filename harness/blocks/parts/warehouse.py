"""A warehouse of kernel cells: how the kernels of one or several layers are cut, and the parameter that holds them.

    c_out = gcd(O_l) ratio_out,  c_in = gcd(I_l / g_l) ratio_in        a cell is c_out x c_in x 1 x 1
    m_l = (O_l / c_out) (I_l / g_l / c_in) k_l^2                        rows: the places of layer l that cells fill
    n = max(floor(b sum m_l), 1)                                        cells, b the ratio of the warehouse

Rows are in the order (tap, group of outputs, group of inputs), the last running fastest. beta, which row starts as
which cell: a running index walks through the layers of the warehouse. With b >= 1 each row gets the index, which then
grows by b; with b = 1/r row i of a layer gets the next cell where i mod r == (i // r) mod r, the others none. The
index must end at n, so b is a whole number or 1/r, and with 1/r that is checked for the layers at hand.

The cells are stored flat, (n, c_out c_in). The paper's cells are 1x1 in space too; larger ones are an ablation there,
and not here. Paper: Li and Yao, KernelWarehouse, ICML 2024, arXiv:2406.07879; details as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, sqrt

import torch
from torch import Tensor, nn

from harness.blocks.base import ConvSpec
from harness.errors import Unsupported


@dataclass(frozen=True)
class Ratios:
    """b, and the part of the channels' common divisors that a cell takes."""

    cells: Fraction
    c_in: Fraction = Fraction(1)
    c_out: Fraction = Fraction(1)


@dataclass(frozen=True)
class LayerCells:
    """What a layer has of a warehouse: the slice of `cells` from `first` on is initialised for it.

    starts: for each of its rows the cell that it starts as; the number of all cells where that is none.
    """

    first: int
    cells: int
    starts: tuple[int, ...]

    @property
    def rows(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class Layout:
    """How many cells there are, of which size, and what each of its layers has of them."""

    cells: int
    c_out: int
    c_in: int
    layers: tuple[LayerCells, ...]


def ratio_of(value: str | float | Fraction) -> Fraction:
    """b as a fraction. Raises Unsupported for what is neither a whole number nor 1/r."""
    try:
        b = Fraction(value).limit_denominator(1000)  # 1/3 as a float is not one
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        b = Fraction(0)
    if isinstance(value, bool) or b <= 0 or 1 not in (b.numerator, b.denominator):
        raise Unsupported(f"a warehouse cannot have the ratio {value!r}", remedy="use 1, 2, 4, ..., 1/2, 1/4 or 1/3")
    return b


def layout_for(specs: Sequence[ConvSpec], ratios: Ratios) -> Layout:
    """The warehouse for these layers, in the order in which the running index meets them.

    Raises Unsupported for ratios that do not come out even.
    """
    ratio_of(ratios.cells)
    c_out = max(int(gcd(*(spec.c_out for spec in specs)) * ratios.c_out), 1)
    c_in = max(int(gcd(*(spec.c_in // spec.groups for spec in specs)) * ratios.c_in), 1)
    rows = [_rows(spec, c_out, c_in) for spec in specs]
    cells = max(int(ratios.cells * sum(rows)), 1)
    layers, first = [], 0
    for count in rows:
        part = _cells_of(count, first, cells, ratios.cells)
        layers.append(part)
        first += part.cells
    if first != cells:
        problem = f"ratio {ratios.cells} leaves {cells} cells for kernels of {', '.join(map(str, rows))} places"
        raise Unsupported(f"{problem}, but {first} of these would start as a cell", remedy="use ratio 1, 2 or 4 there")
    return Layout(cells, c_out, c_in, tuple(layers))


def _rows(spec: ConvSpec, c_out: int, c_in: int) -> int:
    into = spec.c_in // spec.groups
    for what, channels, cell in (("outputs", spec.c_out, c_out), ("inputs per group", into, c_in)):
        if channels % cell:
            raise Unsupported(
                f"cells of {cell} channels do not fill {channels} {what}",
                remedy="use ratio 1, 2 or 4 (whole cells), or an even number of channels",
            )
    return (spec.c_out // c_out) * (into // c_in) * spec.kernel_size**2


def _cells_of(rows: int, first: int, cells: int, ratio: Fraction) -> LayerCells:
    if ratio >= 1:
        step = int(ratio)
        return LayerCells(first, step * rows, tuple(first + step * row for row in range(rows)))
    r, starts, index = ratio.denominator, [], first
    for row in range(rows):
        gets_one = row % r == (row // r) % r
        starts.append(index if gets_one else cells)
        index += gets_one
    return LayerCells(first, index - first, tuple(starts))


def beta(part: LayerCells, cells: int) -> Tensor:
    """(rows, cells + 1), one 1 in each row: the cell that it starts as; the last column stands for none."""
    return torch.eye(cells + 1)[list(part.starts)]


class Warehouse(nn.Module):
    """The cells (n, c_out c_in). Layers point to it and do not own it: whoever holds them registers it once.

    Each layer's slice starts normal with variance 2 / (cells of the slice * c_out).
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.cells = nn.Parameter(torch.empty(layout.cells, layout.c_out * layout.c_in))
        for part in layout.layers:
            slice_ = self.cells[part.first : part.first + part.cells]
            nn.init.normal_(slice_, std=sqrt(2 / (part.cells * layout.c_out)))

    def extra_repr(self) -> str:
        return f"{self.layout.cells} cells of {self.layout.c_out} x {self.layout.c_in}"
