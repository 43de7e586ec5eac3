"""The places in a network that tests put every block of the registry into, as its declaration allows."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from harness import blocks
from harness.blocks import Block

USUAL = 3


Place = tuple[int, int, int, int, int, int]
"""c_in, c_out, kernel size, stride, groups, dilation."""


def sizes_of(name: str, *wanted: int) -> list[int]:
    """Those of the wanted sizes that the block declares; its smallest where it has none of them."""
    declared = blocks.declaration(name)["limits"]["kernel_size"]
    return [size for size in wanted if size in declared] or [min(declared)]


def usual_size(name: str) -> int:
    return sizes_of(name, USUAL)[0]


def with_sizes(names: Iterable[str], *wanted: int) -> list[tuple[str, int]]:
    """Cases for a test: each block at each of the wanted sizes that it has."""
    return [(name, size) for name in names for size in sizes_of(name, *wanted)]


def declared(name: str, place: Place) -> bool:
    """Whether the declaration says that the block takes this place; read off the JSON, not asked of the constructor."""
    c_in, c_out, kernel_size, stride, groups, dilation = place
    limits = blocks.declaration(name)["limits"]
    return (
        kernel_size in limits["kernel_size"]
        and (limits["stride"] == "any" or stride in limits["stride"])
        and (limits["dilation"] == "any" or dilation in limits["dilation"])
        and {"any": True, "dense": groups == 1, "depthwise": groups == c_in == c_out}[limits["groups"]]
        and (c_in == c_out or not limits["same_channels"])
        and c_in % (limits["channel_multiple"] * groups) == c_out % (limits["channel_multiple"] * groups) == 0
    )


def nearest(name: str, place: Place) -> Place:
    """The place itself, changed as little as the block asks for."""
    c_in, c_out, kernel_size, stride, groups, dilation = place
    limits = blocks.declaration(name)["limits"]
    depthwise, multiple = limits["groups"] == "depthwise", limits["channel_multiple"]
    if multiple > 1:
        multiple *= groups if limits["groups"] == "any" else 1
        c_in, c_out = (-(-channels // multiple) * multiple for channels in (c_in, c_out))
    found = (
        c_in,
        c_in if depthwise or limits["same_channels"] else c_out,
        sizes_of(name, kernel_size)[0],
        stride if limits["stride"] == "any" or stride in limits["stride"] else limits["stride"][0],
        {"any": groups, "dense": 1, "depthwise": c_in}[limits["groups"]],
        dilation if limits["dilation"] == "any" or dilation in limits["dilation"] else limits["dilation"][0],
    )
    assert declared(name, found)
    return found


def places(name: str, wanted: Iterable[Place]) -> list[Place]:
    """The nearest places that the block takes, each once."""
    return list(dict.fromkeys(nearest(name, place) for place in wanted))


def make(name: str, c_in: int = 4, c_out: int = 4, **rest: int | str | bool) -> Block:
    """`blocks.create`, at the block's usual size where none is named and in the nearest place that it takes."""
    keys = ("kernel_size", "stride", "groups", "dilation")
    values = {"kernel_size": usual_size(name), "stride": 1, "groups": 1, "dilation": 1}
    values |= {key: rest.pop(key) for key in keys if key in rest}
    place = nearest(name, (c_in, c_out, *(int(values[key]) for key in keys)))
    return blocks.create(name, *place, **rest)


def fed(block: Block, x: Tensor) -> Tensor:
    """An input that the fused form is exact for."""
    return x.abs() if block.needs == "non-negative input" else x


def images(block: Block, batch: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Maps of the block's channels that its fused form is exact for."""
    return fed(block, torch.randn(batch, block.spec.c_in, height, width, dtype=dtype))


PLACES = [
    # c_in, c_out, k, stride, groups, dilation
    (6, 6, 3, 1, 1, 1),
    (6, 8, 3, 2, 1, 1),
    (6, 6, 1, 1, 1, 1),
    (6, 9, 5, 1, 3, 2),
    (6, 6, 3, 1, 6, 1),
    (6, 12, 3, 2, 6, 2),
    (12, 6, 3, 1, 6, 1),
    (3, 5, 7, 2, 1, 1),
    (8, 4, 13, 1, 2, 1),
]
