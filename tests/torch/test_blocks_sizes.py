"""Which kernel sizes a block has: what it declares is what its constructor takes, and how other tests pick one."""

from __future__ import annotations

import pytest

from harness import blocks
from harness.blocks import BLOCKS, Block
from harness.blocks.base import KERNEL_SIZES
from harness.errors import Unsupported

USUAL = 3


def sizes_of(name: str, *wanted: int) -> list[int]:
    """Those of the wanted sizes that the block declares; its smallest where it has none of them."""
    declared = blocks.declaration(name)["limits"]["kernel_size"]
    return [size for size in wanted if size in declared] or [min(declared)]


def usual_size(name: str) -> int:
    return sizes_of(name, USUAL)[0]


def with_sizes(names: list[str], *wanted: int) -> list[tuple[str, int]]:
    """Cases for a test: each block at each of the wanted sizes that it has."""
    return [(name, size) for name in names for size in sizes_of(name, *wanted)]


def make(name: str, *channels: int, **rest: int | str | bool) -> Block:
    """`blocks.create`, at the block's usual size where none is named."""
    return blocks.create(name, *channels, **{"kernel_size": usual_size(name), **rest})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_has_the_kernel_sizes_it_declares_and_no_others(name):
    declared = blocks.declaration(name)["limits"]["kernel_size"]
    assert declared == sorted(declared)
    assert set(declared) <= set(KERNEL_SIZES)
    for kernel_size in range(-1, 16):
        if kernel_size in declared:
            assert blocks.create(name, 4, 4, kernel_size).spec.kernel_size == kernel_size
        else:
            with pytest.raises(Unsupported) as refused:
                blocks.create(name, 4, 4, kernel_size)
            assert refused.value.remedy


def test_every_size_has_a_block_beside_the_plain_one():
    assert sizes_of("orepa_1x1", 3, 5) == [1]
    assert sizes_of("orepa_stem", 1, 3, 7, 13) == [7, 13]
    assert with_sizes(["conv", "orepa_stem"], 1, 5) == [("conv", 1), ("conv", 5), ("orepa_stem", 5)]
    assert [usual_size(name) for name in ("orepa", "orepa_1x1", "orepa_stem")] == [3, 1, 5]
