"""Blocks that mix experts, and what they are fed."""

from __future__ import annotations

import torch
from torch import Tensor

from harness import blocks
from harness.blocks import Block, ConvSpec

NAMES = ("condconv", "dyconv", "odconv")


VARIANTS = [
    ("condconv", {}),
    ("condconv", {"experts": 8}),
    ("dyconv", {}),
    ("dyconv", {"kernels": 2}),
    ("odconv", {}),
    ("odconv", {"kernels": 4}),
    ("odconv", {"attention_norm": "layer"}),
    ("odconv", {"kernels": 2, "attention_norm": "none"}),
]


def make(name: str, spec: ConvSpec, **options) -> Block:
    return blocks.BLOCKS[name](spec, **options).double()


def maps(n: int, spec: ConvSpec) -> Tensor:
    return torch.randn(n, spec.c_in, 11, 9, dtype=torch.float64)


def temper(block: Block, value: float) -> None:
    block.attention.set_temperature(value)
