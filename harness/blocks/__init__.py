"""Convolution blocks: one file a block, in the folder of its family; importing this package imports them all."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, Block, ConvSpec, FusableBlock, check_options, declaration
from harness.blocks.declared import NON_NEGATIVE, Choice

__all__ = ["BLOCKS", "NON_NEGATIVE", "Block", "ConvSpec", "FusableBlock", "Kernel", "create", "declaration"]

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    import_module(_module.name)


def create(
    name: str,
    c_in: int,
    c_out: int,
    kernel_size: int = 3,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    padding: int | None = None,
    **options: Choice,
) -> Block:
    """A block that takes the place of this convolution and the batch norm behind it.

    x (N, c_in, H, W) -> (N, c_out, ceil(H / stride), ceil(W / stride)).
    padding: zeros on each side of the map; by default "same", dilation * (kernel_size // 2), as in the shapes above.
    Options left out are as in the block's paper. Raises UnknownName for a block or option that does not exist,
    Unsupported for a combination that the block cannot do.
    """
    block = BLOCKS[name]
    check_options(name, options)
    spec = ConvSpec(c_in, c_out, kernel_size, stride, groups, dilation)
    return block(spec if padding is None else spec.padded(padding), **options)
