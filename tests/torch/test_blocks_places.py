"""Which places a block can take: what it declares is what its constructor takes, and how other tests pick one."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from block_places import USUAL, declared, nearest, sizes_of, usual_size, with_sizes

from harness import blocks
from harness.blocks import BLOCKS
from harness.errors import Unsupported


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_has_the_kernel_sizes_it_declares_and_no_others(name):
    limits = blocks.declaration(name)["limits"]["kernel_size"]
    assert limits == sorted(limits)
    for kernel_size in range(-1, 34):
        c_in, c_out, _, *rest = nearest(name, (4, 4, USUAL, 1, 1, 1))
        place = (c_in, c_out, kernel_size, *rest)
        if kernel_size in limits:
            assert blocks.create(name, *place).spec.kernel_size == kernel_size
        else:
            with pytest.raises(Unsupported) as refused:
                blocks.create(name, *place)
            assert refused.value.remedy


@pytest.mark.parametrize("name", BLOCKS)
def test_declaration_and_constructor_agree_on_every_place(name):
    """Each way: what is declared is built and runs, what is not declared is refused with a remedy."""
    layouts = [(4, 4, 1), (4, 8, 1), (8, 4, 1), (4, 4, 2), (4, 4, 4), (4, 8, 4), (8, 4, 4), (8, 8, 1), (16, 8, 1)]
    built = 0
    for (c_in, c_out, groups), k, stride, dilation in product(layouts, sizes_of(name, 3, 7), [1, 2, 3], [1, 2]):
        place = (c_in, c_out, k, stride, groups, dilation)
        if declared(name, place):
            block = blocks.create(name, *place).eval()
            assert block(torch.randn(1, c_in, 5, 6)).shape == (1, c_out, -(-5 // stride), -(-6 // stride)), place
            built += 1
        else:
            with pytest.raises(Unsupported) as refused:
                blocks.create(name, *place)
            assert refused.value.remedy, place
    assert built


def test_every_size_has_a_block_beside_the_plain_one():
    assert sizes_of("orepa_1x1", 3, 5) == [1]
    assert sizes_of("orepa_stem", 1, 3, 7, 13) == [7, 13]
    assert with_sizes(["conv", "orepa_stem"], 1, 5) == [("conv", 1), ("conv", 5), ("orepa_stem", 5)]
    assert [usual_size(name) for name in ("orepa", "orepa_1x1", "orepa_stem")] == [3, 1, 5]
