"""Kernels of KernelWarehouse put together by hand."""

from __future__ import annotations

from itertools import product

import torch


def assembled(cells, spec, cell_out, cell_in):
    """A kernel of cells (rows, cell_out * cell_in), row by row: taps outermost, groups of inputs innermost."""
    into, k = spec.c_in // spec.groups, spec.kernel_size
    kernel = torch.zeros(spec.c_out, into, k, k, dtype=cells.dtype)
    places = product(range(k), range(k), range(spec.c_out // cell_out), range(into // cell_in))
    for cell, (down, right, out, inside) in zip(cells, places, strict=True):
        outputs = slice(out * cell_out, (out + 1) * cell_out)
        inputs = slice(inside * cell_in, (inside + 1) * cell_in)
        kernel[outputs, inputs, down, right] = cell.reshape(cell_out, cell_in)
    return kernel


def at(module, temperature):
    for child in module.modules():
        if hasattr(child, "set_temperature"):
            child.set_temperature(temperature)
    return module
