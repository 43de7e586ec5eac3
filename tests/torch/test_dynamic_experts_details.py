"""CondConv, DY-Conv and ODConv: temperatures, initialisation, counts and refusals."""

from __future__ import annotations

import random
from dataclasses import replace
from math import sqrt

import pytest
import torch
from expert_blocks import NAMES, VARIANTS, make, maps, temper
from metric_cells import CELL, read
from torch import nn

from harness import blocks
from harness.blocks import Block, ConvSpec
from harness.errors import Unsupported
from harness.records import Variant
from harness.training.annealing import Annealing


@pytest.mark.parametrize(("epochs", "last"), [(None, 70), (20, 14)])
def test_temperatures_fall_from_30_to_1_over_a_tenth_of_the_training(epochs, last):
    model = nn.ModuleList(
        [make("dyconv", ConvSpec(4, 6)), make("odconv", ConvSpec(4, 6)), make("condconv", ConvSpec(4, 6))]
    )
    annealing = Annealing(model, steps_per_epoch=7, epochs=epochs)
    at = {}
    assert all(block.attention.temperature == 1 for block in model[:2])  # ready for inference before any training
    for step in range(1, last + 9):
        annealing.step()
        first, second = (block.attention.temperature for block in model[:2])
        assert first == second
        at[step] = first.item()
    for step, expected in {1: 30 - 29 / last, last // 2: 15.5, last: 1.0, last + 1: 1.0, last + 8: 1.0}.items():
        assert at[step] == pytest.approx(expected, rel=1e-6)
    assert at[last - 1] > 1


@pytest.mark.parametrize("name", ["dyconv", "odconv"])
def test_a_temperature_is_restored_with_the_training(name, lived_in):
    def begun() -> tuple[Block, Annealing]:
        block = make(name, ConvSpec(4, 6))
        return block, Annealing(block, steps_per_epoch=5)

    (block, annealing), (again, resumed) = begun(), begun()
    lived_in(block)
    for _ in range(20):
        annealing.step()
    again.load_state_dict(block.state_dict())
    resumed.load_state_dict(annealing.state_dict())
    assert again.attention.temperature.item() == pytest.approx(30 - 29 * 20 / 50)
    x = maps(2, block.spec)
    assert torch.equal(again.eval()(x), block.eval()(x))
    annealing.step(), resumed.step()
    assert again.attention.temperature == block.attention.temperature == pytest.approx(30 - 29 * 21 / 50)


def test_all_four_attentions_of_odconv_are_tempered(lived_in):
    block = lived_in(make("odconv", ConvSpec(4, 6), kernels=4)).eval()
    x = maps(2, block.spec).mean((2, 3))
    cold = block.attention(x)
    temper(block, 3.0)
    hot = block.attention(x)
    for name in ("channel", "filter", "spatial"):
        torch.testing.assert_close(hot[name].logit(), cold[name].logit() / 3)
    torch.testing.assert_close(hot["kernel"], (cold["kernel"].log() / 3).softmax(1))


def test_experts_begin_as_in_the_original_code():
    spec = ConvSpec(64, 128, groups=2)
    fan_in, fan_out = 32 * 9, 128 * 9  # fan_out counts all filters, as torch does for a grouped weight
    experts = {name: make(name, spec, **options).experts for name, options in VARIANTS[:6]}
    assert all(len(rows.unique(dim=0)) == len(rows) for rows in experts.values())
    for row in experts["odconv"]:
        assert row.std().item() == pytest.approx(sqrt(2 / fan_out), rel=0.02)
        assert row.abs().max() > 3 * sqrt(2 / fan_out)  # a normal distribution
    for name, bound in {"dyconv": sqrt(6 / fan_in), "condconv": 1 / sqrt(fan_in)}.items():
        for row in experts[name]:
            assert row.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert row.std().item() == pytest.approx(bound / sqrt(3), rel=0.02)


def test_attentions_begin_kaiming_normal_by_their_fan_out_and_unbiased():
    omni = make("odconv", ConvSpec(1024, 512), kernels=4).attention
    dynamic = make("dyconv", ConvSpec(1024, 512)).attention
    for linear in (
        omni.squeeze[0],
        omni.heads["channel"],
        omni.heads["filter"],
        omni.heads["spatial"],
        dynamic.squeeze,
    ):
        assert linear.weight.std().item() == pytest.approx(sqrt(2 / linear.out_features), rel=0.1)
    assert dynamic.kernels.weight.std().item() == pytest.approx(sqrt(2 / 4), rel=0.1)
    assert omni.squeeze[0].bias is None
    assert dynamic.squeeze.bias is None
    for biased in (*omni.heads.values(), dynamic.kernels):
        assert not biased.bias.any()


def count(name: str, s: ConvSpec, n: int, norm: str = "batch") -> int:
    """The reference's formulas, and the block's own batch norm."""
    kernels, taps = n * s.c_out * s.c_in // s.groups * s.kernel_size**2, s.kernel_size**2
    if name == "condconv":
        return kernels + (s.c_in + 1) * n + 2 * s.c_out
    if name == "dyconv":
        h = n if s.c_in == 3 else int(s.c_in * 0.25) + 1
        return kernels + s.c_in * h + (h + 1) * n + 2 * s.c_out
    h = max(int(s.c_in / 16), 16)
    squeeze = s.c_in * h + (0 if norm == "none" else 2 * h)
    heads = s.c_in + (0 if s.groups == s.c_in == s.c_out else s.c_out) + (taps if taps > 1 else 0) + (n if n > 1 else 0)
    return kernels + squeeze + (h + 1) * heads + 2 * s.c_out


@pytest.mark.parametrize("name", NAMES)
def test_parameters_by_the_reference(name):
    draw = random.Random(0)
    (option,) = set(blocks.BLOCKS[name].options()) - {"attention_norm"}
    for _ in range(40):
        g, k = draw.choice((1, 2, 3)), draw.choice((1, 3, 5))
        depthwise = draw.random() < 0.2
        c_in, c_out = g * draw.randint(1, 200), g * draw.randint(1, 200)
        spec = ConvSpec(c_in, c_in, k, groups=c_in) if depthwise else ConvSpec(c_in, c_out, k, groups=g)
        options = {option: draw.choice(blocks.BLOCKS[name].options()[option].choices)}
        if name == "odconv":
            options["attention_norm"] = draw.choice(("batch", "layer", "none"))
        with torch.device("meta"):
            block = blocks.BLOCKS[name](spec, **options)
        counted = sum(parameter.numel() for parameter in block.parameters())
        assert counted == count(name, spec, options[option], options.get("attention_norm", "batch"))
    with torch.device("meta"):
        image = blocks.create(name, 3, 64, 7)
    default = blocks.BLOCKS[name].options()[option].default
    assert sum(parameter.numel() for parameter in image.parameters()) == count(name, image.spec, default)


MIXED = 8 * 8 * 9
ATTENTION = 8 * 16 + 16 * (8 + 8 + 9)


@pytest.mark.parametrize(
    ("name", "options", "kernel_size", "macs", "mixing"),
    [
        ("condconv", {}, 3, 49 * MIXED + 8 * 4, 4 * MIXED),
        ("dyconv", {}, 3, 49 * MIXED + 8 * 3 + 3 * 4, 4 * MIXED),
        ("dyconv", {"kernels": 8}, 1, 49 * 64 + 8 * 3 + 3 * 8, 8 * 64),
        ("odconv", {}, 3, 49 * MIXED + ATTENTION, MIXED + 8 * 9),
        ("odconv", {"kernels": 4}, 3, 49 * MIXED + ATTENTION + 16 * 4, 4 * MIXED + MIXED + 8 * 9),
        ("odconv", {}, 1, 49 * 64 + 8 * 16 + 16 * (8 + 8), None),
    ],
)
def test_products_by_hand(name, options, kernel_size, macs, mixing):
    """On a 7x7 map: convolution and attention here, what makes kernels there; scaling a map is no convolution."""
    layer = Variant("layer", {"c_in": 8, "c_out": 8})
    cell = replace(CELL, block=Variant(name, options), backbone=layer, kernel_size=kernel_size, image_size=7)
    counted = read("macs", cell)
    assert counted["macs"].values == (macs,)
    assert (counted["macs_mixing"].values == (mixing,)) if mixing else ("macs_mixing" not in counted)


def test_no_tensor_has_five_axes():
    for name, options in VARIANTS:
        assert all(tensor.ndim <= 2 for tensor in make(name, ConvSpec(4, 6), **options).state_dict().values())


def test_odconv_trains_on_one_sample_with_another_norm_only():
    x = maps(1, ConvSpec(4, 6))
    with pytest.raises(Unsupported, match=r"batch of 1(.|\n)*try: .*attention_norm: layer"):
        make("odconv", ConvSpec(4, 6))(x)
    assert make("odconv", ConvSpec(4, 6)).eval()(x).isfinite().all()
    for norm in ("layer", "none"):
        make("odconv", ConvSpec(4, 6), attention_norm=norm)(x).sum().backward()


@pytest.mark.parametrize(
    ("name", "options"), [("condconv", {"experts": 1}), ("dyconv", {"kernels": 1}), ("odconv", {"kernels": 3})]
)
def test_other_numbers_of_experts_are_refused(name, options):
    (value,) = options.values()
    with pytest.raises(Unsupported, match=rf"has no \w+ {value}(.|\n)*try: use .* or 8"):
        blocks.create(name, 4, 6, **options)
