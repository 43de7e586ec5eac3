"""Explanations of torch's errors about shapes in the terms of a suite."""

from __future__ import annotations

import re

from harness.errors import HarnessError, Unsupported
from harness.records import Cell

ONE_VALUE = re.compile(r"more than 1 (spatial element|value per channel)", re.IGNORECASE)
TOO_SMALL = re.compile(
    r"Calculated padded input size|Output size is too small|Kernel size can't be greater|"
    r"pad should be (at most|smaller)|Padding size should be less|greater than actual input size"
)
OTHER_RANK = re.compile(
    r"Expected \S+ \((un)?batched\) or|expected (\d+D|\d-D|\d+-dimensional)|expects? \d+D input|"
    r"expected input\[[^]]*\] to have \d+ channels|not enough values to unpack|too many values to unpack|"
    r"mat1 and mat2|a and b must have same reduction dim|normalized_shape",
    re.IGNORECASE,
)


def explained(problem: Exception, cell: Cell) -> Exception:
    """`problem` itself, or where a suite's sizes are the cause an Unsupported that says which and what to change."""
    text = str(problem)
    if isinstance(problem, HarnessError) or not isinstance(problem, RuntimeError | ValueError | AssertionError):
        return problem
    name, side = cell.backbone.label, cell.image_size
    if ONE_VALUE.search(text):
        return Unsupported(
            f"a batch norm of {name} cannot train on one value per channel: batch {cell.batch_size}, {side} px",
            remedy="use batch_size 2 or more, or a larger image_size",
        )
    if TOO_SMALL.search(text):
        return Unsupported(f"{name} cannot take images of {side} px: {text}", remedy="use a larger image_size")
    if OTHER_RANK.search(text):
        return Unsupported(
            f"{name} does not take images as (N, C, H, W): {text}",
            remedy="use a network for images; if it is one, another image_size",
        )
    return problem
