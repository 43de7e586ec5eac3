"""What every block costs on paper: parameters by formula, bytes kept for backward by a count of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from block_places import make, nearest, usual_size
from metric_cells import CELL, read
from saved_graph import saved_bytes

from harness import blocks
from harness.blocks import BLOCKS
from harness.records import Variant

UNITS = {
    "conv": 2.00,
    "repvgg": 3.00,
    "acb": 4.00,
    "dbb": 9.15,
    "qarepvgg": 3.00,
    "mobileone": 6.00,  # the input, five convolutions' outputs
    "repmixer": 4.00,  # the input, two convolutions' outputs, the change that its scale multiplies
    "repvgg_dw": 3.00,
    "replk": 3.00,
    "unirep": 4.00,  # k 5: the input, three convolutions' outputs
    "rm_repvgg": 2.00,  # the input, two convolutions' outputs of half the channels
    "dyrep": 2.00,
    "rm": 4.00,  # the input, two convolutions' outputs, the ReLU's
    "expand_fc": 9.00,  # the input, two maps of four times the channels
    "expand_cl": 10.29,  # the same, one of them with a rim of one pixel, and the norm's input
    "expand_ck": 6.29,  # k 5: the input, one such map with its rim, the norm's input
    "ecb": 6.36,  # the input, a map of twice the channels and three, all with a rim
    # one kernel for each of 8 samples is 0.18 of the map, a mixture of experts keeps it once
    "condconv": 2.18,
    "dyconv": 2.18,
    "kw": 2.19,
    "weightnet": 2.18,
    "cgc": 2.38,  # the gate and the gated kernel
    "odconv": 3.19,  # the scaled input too
    "dcd": 4.00,  # the input, the convolution's output and the path's; what the norm sees
    "involution": 3.06,
    "carafe": 3.14,
    "deformable": 2.70,  # offsets and masks of 27 channels
    "grouped": 2.00,
    "shuffle": 2.00,
    "dilated": 2.00,
    # what the norm behind the convolution makes of it, kept by the attention
    "se": 3.00,
    "ese": 3.00,
    "eca": 3.00,
    "ceca": 3.00,
    "srm": 3.00,
    "gc": 3.02,
    "ge": 4.02,
    "cbam": 4.08,
    "coord": 4.08,
    "bam": 5.39,
    "ran": 5.84,
    "sk": 5.00,
    "splat": 5.00,
    "depthwise_separable": 4.00,
    "bottleneck": 3.00,  # the input, four maps of a quarter of the channels, the last norm's input
    "inverted_residual": 38.00,  # the input, six maps of six times the channels, the last norm's input
    "inception": 3.88,
    "dense": 18.00,
    "residual": 4.00,
    "stacked_3x3": 4.00,
}
"""Saved for backward, in input maps, 64 -> 64 on 8x64x56x56 in training: equal to two decimals."""

AT_MOST = {
    "orepa": 2.17,
    "orepa_vgg": 3.15,
    "orepa_1x1": 2.01,
    "orepa_stem": 2.12,
    "linearized": 2.15,
    "dirac": 2.05,
    "doconv": 2.05,
    "clb": 1.05,  # no norm, so nothing but its input
}
"""Beyond the maps there are kernels; how many are kept depends on how they are composed."""

CONV = 9 * 64 * 64
PARAMETERS = {
    "conv": 36_992,
    "repvgg": 41_344,
    "acb": 61_824,
    "dbb": 86_784,
    "orepa": 128_000,
    "orepa_vgg": 128_192,
    "qarepvgg": 9 * 64 * 64 + 64 * 64 + 2 * 128,
    "mobileone": 4 * 9 * 64 * 64 + 64 * 64 + 6 * 128,
    "repmixer": 9 * 64 + 64 + 4 * 128 + 64,
    "repvgg_dw": 9 * 64 + 64 + 64 + 2 * 128,
    "replk": (49 + 25) * 64 * 64 + 2 * 128,
    "unirep": (25 + 9 + 9) * 64 + 3 * 128,
    "dyrep": 36_992,
    "linearized": 86_784 - 6 * 128 + 4 * 64 + 128,  # dbb's without its norms, scales, one norm
    "dirac": 9 * 64 * 64 + 2 * 64 + 128,
    "doconv": 9 * 64 * 64 + 64 * 9 * 9 + 128,
    "expand_cl": 64 * 256 + 9 * 256 * 256 + 256 * 64 + 128,
    "expand_ck": 2 * 9 * 64 * 256 + 128,  # k 5
    "expand_fc": 64 * 256 + 256 + 256 * 256 + 256 + 256 * 64 + 64,
    "clb": 9 * 64 * 256 + 256 + 256 * 64 + 64,
    "ecb": (9 * 64 * 64 + 64) + (64 * 128 + 128 + 9 * 128 * 64 + 64) + 3 * (64 * 64 + 3 * 64),
    "rm": 2 * (9 * 64 * 64 + 128),
    "rm_repvgg": 9 * 64 * 32 + 64 * 32 + 3 * 64,
    "orepa_1x1": 2 * 64 * 64 + 64 * 64 + 2 * 64 + 2 * 64,  # origin and two factors, scales, batch norm
    "orepa_stem": 2 * (128_000 - 2 * 64) + 2 * 64,  # k 5: two of orepa's kernels, batch norm
    "condconv": 4 * CONV + (64 + 1) * 4 + 128,
    "dyconv": 4 * CONV + 64 * 17 + (17 + 1) * 4 + 128,
    "odconv": CONV + 64 * 16 + 32 + (16 + 1) * (64 + 64 + 9) + 128,
    "kw": CONV + 64 * 16 + 32 + (16 + 1) * (9 + 1) * 9 + 128,  # nine cells of 64 x 64
    "dcd": CONV + 2 * 64 * 16 + 4 * 16 + 4 * 64 * 16 + 16 * 16 + 16 * 16**2 + 16 * 64 + 128,  # d = q = 16
    "weightnet": CONV + 16 * 64 + 16 + 16 * 128 + 128 + 128,
    "cgc": 36_992 + 775,
    "involution": 64 * 16 + 32 + (16 + 1) * 9 * 4 + 128,
    "carafe": 64 * 64 + 64 + 577 * 9 + 128,
    "deformable": CONV + (9 * 64 + 1) * 27 + 128,
    "grouped": CONV // 8 + 128,
    "shuffle": CONV // 8 + 128,
    "dilated": CONV + 128,
    "se": 36_992 + 1096,
    "ese": 36_992 + 4160,
    "eca": 36_992 + 3,
    "ceca": 36_992 + 3,
    "ge": 36_992,
    "gc": 36_992 + 1177,
    "cbam": 36_992 + 612,
    "bam": 36_992 + (64 * 4 + 4 + 8 + 4 * 64 + 64) + (64 * 4 + 4 + 8 + 2 * (9 * 16 + 4 + 8) + 4 + 1),
    "srm": 36_992 + 4 * 64,
    "ran": 36_992 + 2632,
    "coord": 36_992 + 1552,
    "sk": 80_192,
    "splat": 43_488,
    "depthwise_separable": 64 * 9 + 64 * 64 + 4 * 64,
    "bottleneck": 64 * 16 + 9 * 16 * 16 + 16 * 64 + 4 * 16 + 128,
    "inverted_residual": 64 * 384 + 9 * 384 + 384 * 64 + 4 * 384 + 128,
    "inception": 11_224,  # against torchvision's in a test of its own
    "dense": sum(2 * w + w * 128 + 256 + 9 * 128 * 32 for w in (64, 96)) + 2 * 128 + 128 * 64 + 128,
    "residual": 2 * CONV + 4 * 64,
    "stacked_3x3": 2 * CONV + 4 * 64,  # k 5
}
"""Of a train form, 64 -> 64."""

FUSED = {
    "rm": 9 * 64 * 128 + 128 + 9 * 128 * 64 + 64,  # two convolutions, between them as many channels more as it copies
}
"""Of a fused form that is not the one convolution which the block calls `deployed`."""


@pytest.mark.parametrize("name", [*UNITS, *AT_MOST])
def test_bytes_saved_for_backward(name):
    x = torch.randn(8, 64, 56, 56)
    units = saved_bytes(make(name, 64, 64).train(), x) / x.untyped_storage().nbytes()
    if name in UNITS:
        assert round(units, 2) == UNITS[name]
    else:
        assert units <= AT_MOST[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_the_metric_reads_what_the_graph_holds(name):
    """saved_memory's bytes against this file's own count, and its branches against their sum."""
    c_in, c_out, k, stride, groups, dilation = nearest(name, (8, 8, usual_size(name), 1, 1, 1))
    sizes = {"c_in": c_in, "c_out": c_out, "stride": stride, "groups": groups, "dilation": dilation}
    cell = replace(CELL, block=Variant(name), backbone=Variant("layer", sizes), kernel_size=k)
    reading = read("saved_memory", cell)["saved_memory"]
    x = torch.randn(cell.batch_size, c_in, cell.image_size, cell.image_size)
    block = blocks.create(name, c_in, c_out, k, stride, groups, dilation).train()
    assert reading.values == (saved_bytes(block, x),)
    assert sum(reading.facts["branches"].values()) == reading.values[0]


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts_of_the_reference(name, count):
    block = make(name, 64, 64)
    assert sum(parameter.numel() for parameter in block.parameters()) == count
    if not block.fusable():
        return
    deployed = 64 * 64 // block.deployed.groups * block.spec.kernel_size**2 + 64
    deployed += sum(parameter.numel() for parameter in block.after.parameters())
    assert sum(parameter.numel() for parameter in block.fused().parameters()) == FUSED.get(name, deployed)


def test_every_block_has_its_counts():
    """A second opinion on each block: counts by hand, from the paper's formula."""
    here = f"tests/torch/{__name__}.py"
    assert len(PARAMETERS) >= 58, "a new block is one file and may come without; none that is here may go"
    assert set(PARAMETERS) == {*UNITS, *AT_MOST}, f"{here}: what a block keeps stands in UNITS or AT_MOST"
    assert not (more := {*PARAMETERS, *FUSED, *UNITS, *AT_MOST} - set(BLOCKS)), f"{here}: no block is called {more}"
