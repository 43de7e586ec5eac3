"""How many parameters attention blocks have, alone and in whole networks, and that they compute what timm's compute."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import timm
import torch
from timm.layers import create_attn
from torch import nn

from harness import blocks

D = torch.float64
ATTENDED = ["se", "ese", "eca", "ceca", "ge", "gc", "cbam", "bam", "srm", "ran", "coord"]


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def after(name: str, channels: int, **options: str | int | bool) -> int:
    """Parameters of the attention alone."""
    with torch.device("meta"):
        return size(blocks.create(name, channels, channels, **options).after)


@pytest.mark.parametrize(
    ("name", "options", "counts"),
    [
        ("se", {}, (1096, 8464, 33312)),
        ("ese", {}, (4160, 65792, 262656)),
        ("eca", {}, (3, 5, 5)),
        ("ceca", {}, (3, 5, 5)),
        ("gc", {}, (1177, 16993, 66753)),
        ("cbam", {}, (612, 8292, 32868)),
        ("cbam", {"bias": True}, (680, 8564, 33412)),
        ("coord", {}, (1552, 6160, 36912)),
        ("srm", {}, (256, 1024, 2048)),
        ("ge", {}, (0, 0, 0)),
    ],
)
def test_counts_of_the_reference(name, options, counts):
    assert tuple(after(name, c, **options) for c in (64, 256, 512)) == counts


def test_counts_of_the_reference_for_bam_and_the_blocks_that_are_the_convolution():
    assert [after("bam", c) for c in (256, 512, 1024)] == [17361, 68513, 272193]
    with torch.device("meta"):
        sk = [blocks.create("sk", c, c, split_input=True, divisor=8) for c in (64, 256, 512)]
        splat = [blocks.create("splat", c, c, attention_norm="none") for c in (64, 256, 512)]
    assert [size(block) for block in sk] == [38672, 603168, 2410560]
    assert [size(block) - size(block.conv.bn) for block in splat] == [
        43168,
        688768,
        2753792,
    ]  # timm's alone has no norm


def near(width: float, multiple: int, least: int = 0) -> int:
    return max(multiple, least, int((width + multiple / 2) // multiple) * multiple)


def formula(name: str, c: int, o: int, k: int, g: int) -> int:
    """What each block has at its defaults."""
    conv, sixteenth, twentyfourth = o * c // g * k * k + 2 * o, near(o / 16, 8), near(o / 24, 8)
    taps = int(abs(math.log2(o) + 1) / 2)
    few, eighth, h = near(o / 16, 1), near(o / 8, 1, 4), max(4, o // 16)
    mixed = near(c / 2, 8, 32)
    extra = {
        "se": 2 * o * sixteenth + sixteenth + o,
        "ese": o * o + o,
        "eca": max(3, taps if taps % 2 else taps + 1),
        "ceca": max(3, taps if taps % 2 else taps + 1),
        "ge": 0,
        "gc": o + 1 + 2 * o * eighth + 3 * eighth + o,
        "cbam": 2 * o * few + 2 * 49 + 2,
        "bam": (2 * o * h + 3 * h + o) + (o * h + 3 * h) + 2 * (9 * h * h + 3 * h) + h + 1,
        "srm": 4 * o,
        "ran": 9 * o * h + 2 * h + h * o + o,
        "coord": 3 * o * twentyfourth + 2 * twentyfourth,
        "sk": conv + (o + 2 + 2 * o) * near(o / 16, 32),
        "splat": 2 * o
        + (o * mixed + mixed)
        + 2 * mixed
        + (mixed * 2 * o + 2 * o),  # its convolution: twice as wide, in halves
    }
    return conv + extra[name]


@pytest.mark.parametrize("name", [*ATTENDED, "sk", "splat"])
def test_counts_in_closed_form(name):
    draw = random.Random(0)
    for _ in range(12):
        g = 1 if name == "splat" else draw.choice([1, 2, 4])
        c, o = 4 * draw.randint(1, 80), 4 * draw.randint(1, 80)
        k = 3 if name == "sk" else draw.choice([1, 3, 5])
        with torch.device("meta"):
            block = blocks.create(name, c, o, k, groups=g)
        assert size(block) == formula(name, c, o, k, g), (c, o, k, g)
        shape = block(torch.empty(2, c, 5, 7, device="meta")).shape
        assert shape == (2, o, 5, 7)


def behind_residuals(model: nn.Module, name: str, **options: str | int | bool) -> nn.Module:
    """Each residual branch's last convolution and batch norm replaced, the attention thus behind them."""
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for each in stage:
            each.conv3, each.bn3 = (
                blocks.create(name, each.conv3.in_channels, each.conv3.out_channels, 1, **options),
                nn.Identity(),
            )
    return model


@pytest.mark.parametrize("name", ["se", "ese", "eca", "ceca", "gc", "cbam", "coord"])
def test_resnet50_has_as_many_parameters_as_timm_gives_it(name):
    with torch.device("meta"):
        model = behind_residuals(timm.create_model("resnet50"), name)
        wanted = (
            timm.create_model("seresnet50")
            if name == "se"
            else timm.create_model("resnet50", block_args={"attn_layer": name})
        )
    assert size(model) == size(wanted)
    if name == "se":
        assert size(model) == 28_088_024


@pytest.mark.parametrize(("backbone", "published"), [("resnet50", 24.37), ("resnet101", 42.49), ("resnet152", 57.41)])
def test_published_sizes_of_eca_are_in_units_of_two_to_the_twentieth(backbone, published):
    with torch.device("meta"):
        millions = size(behind_residuals(timm.create_model(backbone), "eca")) / 2**20
    assert abs(millions - published) < 0.01  # ResNet-152 is 57.404
    assert abs(millions * 2**20 / 1e6 - published) > 1


class CifarBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, name: str, **options: str | int | bool) -> None:
        super().__init__()
        stride = 1 if c_in == c_out else 2
        self.first = blocks.create("conv", c_in, c_out, 3, stride)
        self.second = blocks.create(name, c_out, c_out, 3, **options)
        self.shortcut = nn.Identity() if stride == 1 else blocks.create("conv", c_in, c_out, 1, stride)


@pytest.mark.parametrize(
    ("name", "options", "published"),
    [("conv", {}, 466_906), ("se", {"divisor": 1, "bias": False}, 470_266), ("srm", {}, 469_146)],
)
def test_published_sizes_of_resnet32_on_cifar(name, options, published):
    """srm-002, -004 and -006: the reference's SRM repository has no biases in its SE."""
    with torch.device("meta"):
        widths = [16, *(width for width in (16, 32, 64) for _ in range(5))]
        inner = [CifarBlock(*pair, name, **options) for pair in pairwise(widths)]
        model = nn.Sequential(blocks.create("conv", 3, 16), *inner, nn.Linear(64, 10))
    assert size(model) == published


@pytest.mark.parametrize(
    ("backbone", "name", "options", "wanted"),
    [
        ("resnext50_32x4d", "sk", {"groups": 32}, "skresnext50_32x4d"),
        ("resnet50", "sk", {"split_input": True, "divisor": 8}, "skresnet50"),
        ("resnet50d", "splat", {}, "resnest50d"),
    ],
)
def test_networks_whose_middle_convolution_is_selective_or_split(backbone, name, options, wanted):
    with torch.device("meta"):
        model = timm.create_model(backbone)
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            for each in stage:
                each.conv2, each.bn2 = (
                    blocks.create(name, each.conv2.in_channels, each.conv2.out_channels, **options),
                    nn.Identity(),
                )
        assert size(model) == size(timm.create_model(wanted))


def copied(theirs: nn.Module, mine: nn.Module) -> None:
    """Parameters and buffers in order, but for the counters: the same modules in the same order, in other shapes."""
    for module in (theirs, mine):
        assert not [
            name for name, tensor in module.named_buffers() if tensor.is_floating_point() and "running" not in name
        ]
    for name in ("parameters", "buffers"):
        for target, source in zip(getattr(theirs, name)(), getattr(mine, name)(), strict=True):
            target.data.copy_(source.data.reshape(target.shape))


@pytest.mark.parametrize(
    ("name", "options", "kwargs"),
    [
        ("sk", {"split_input": True, "divisor": 8}, {}),
        ("sk", {}, {"split_input": False, "rd_divisor": 32}),
        ("splat", {}, {"norm_layer": nn.BatchNorm2d}),
        ("splat", {"radix": 4}, {"norm_layer": nn.BatchNorm2d, "radix": 4}),
        ("splat", {"radix": 1}, {"norm_layer": nn.BatchNorm2d, "radix": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize(("stride", "training"), [(1, True), (2, False)])
def test_the_same_numbers_as_timm(name, options, kwargs, stride, training, lived_in):
    mine = lived_in(blocks.create(name, 8, 8, 3, stride, **options)).double().train(training)
    theirs = create_attn(name, 8, out_channels=8, kernel_size=3 if name == "splat" else [3, 5], stride=stride, **kwargs)
    theirs = theirs.double().train(training)
    copied(theirs, mine)
    x = torch.randn(3, 8, 9, 14, dtype=D)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-12, atol=1e-12)


GE_SETTINGS = [
    (extent, learned)
    for extent in (0, 2, 4, 8)
    for learned in ("none", "depthwise", "mlp")
    if extent or learned != "depthwise"
]


@pytest.mark.parametrize(("extent", "learned"), GE_SETTINGS)
def test_gather_excite_beside_timm_whose_own_cannot_have_parameters_today(extent, learned, lived_in):
    """timm 1.0.31 hands a dict's keys on as positional arguments wherever it makes a layer."""
    mine = lived_in(blocks.create("ge", 8, 8, 3, extent=extent, learned=learned)).double().after
    settings = {"extent": extent, "extra_params": learned != "none" and extent > 0, "use_mlp": learned == "mlp"}
    if timm.__version__ == "1.0.31" and learned != "none":
        with pytest.raises(TypeError):
            create_attn("ge", 8, **settings)
        return
    theirs = create_attn("ge", 8, **settings).double()
    copied(theirs, mine)
    x = torch.randn(3, 8, 9, 14, dtype=D)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-12, atol=1e-12)
