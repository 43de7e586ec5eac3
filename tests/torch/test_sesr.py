"""SESR: the published networks, as they are trained and as they are deployed."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from metric_cells import count, net
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from harness.measuring.subject import Subject
from harness.memory import build_on_meta
from harness.models import build, fuse, swap
from harness.models.nets.sesr import depth_to_space
from harness.records import Variant

EVERY_LAYER = {"kernel_size": [3, 5], "stem": True}


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def pixel_of(channel, scale):
    """Where TensorFlow's depth-to-space by two, for x4 done twice, puts a channel: (row, column) of its tile."""
    if scale == 2:
        return divmod(channel, 2)
    (dy1, dx1), (dy2, dx2) = (divmod(half, 2) for half in divmod(channel, 4))
    return 2 * dy1 + dy2, 2 * dx1 + dx2


def sesr_equation(x, head, body, slopes, tail, scale):
    """The network from its equation; layers are (weight, bias), channels go to pixels one by one."""
    first = features = F.conv2d(x - 0.5, *head, padding=2)
    for layer, slope in zip(body, slopes, strict=True):
        features = F.conv2d(features, *layer, padding=1)
        features = torch.where(features > 0, features, slope[:, None, None] * features)
    channels = F.conv2d(features + first, *tail, padding=2) + x
    n, _, height, width = x.shape
    y = x.new_full((n, 1, scale * height, scale * width), math.nan)
    for channel in range(scale**2):
        row, column = pixel_of(channel, scale)
        y[:, 0, row::scale, column::scale] = channels[:, channel]
    return y.clamp(0, 1)


def sesr_layers(model):
    """Head, body and tail of a plain net as (weight, bias), and the slopes of the body."""
    convs = [model.head, *(slot.conv for slot in model.body), model.tail]
    head, *body, tail = ((conv.weight, conv.bias) for conv in convs)
    return head, body, [slot.act.weight for slot in model.body], tail


def small_steps(model):
    """What is added to the image becomes a tenth of it, or so: where all is clipped, nothing is seen."""
    sizes = []
    with torch.no_grad():
        hook = model.tail.register_forward_hook(lambda module, args, output: sizes.append(output.std()))
        model(torch.rand(1, 1, 7, 9))
        hook.remove()
        for parameter in list(model.tail.parameters())[-2:]:  # the convolution's, or its last factor's
            parameter.mul_(0.1 / sizes[0])
    return model


@pytest.mark.parametrize(("name", "scale"), [("sesr_m3_x2", 2), ("sesr_m3_x4", 4)])
def test_sesr_computes_its_equation(name, scale, lived_in):
    ours = small_steps(lived_in(build(name))).double()
    x = torch.rand(2, 1, 7, 9, dtype=torch.float64)
    wanted = sesr_equation(x, *sesr_layers(ours), scale)
    assert ((wanted > 0) & (wanted < 1)).double().mean() > 0.5
    torch.testing.assert_close(ours(x), wanted, rtol=1e-12, atol=1e-12)


def test_depth_to_space_is_tensorflows():
    x = torch.arange(2 * 12 * 3 * 2).reshape(2, 12, 3, 2)
    y = depth_to_space(x)
    assert y.shape == (2, 3, 6, 4)
    for dy, dx, c in product(range(2), range(2), range(3)):
        assert torch.equal(y[:, c, dy::2, dx::2], x[:, (2 * dy + dx) * 3 + c])


def test_slopes_begin_at_zero_as_in_keras():
    model = build("sesr_m3_x2")
    assert [slot.act.weight.tolist() for slot in model.body] == [[0.0] * 16] * 3


SESR_TABLE = {
    # convolution weights and MACs in G for an image of 1280x720, x2 and x4: blocks-more, section 5
    "m3": ((8_912, 2.053), (13_712, 0.790)), "m5": ((13_520, 3.115), (18_320, 1.055)),
    "m7": ((18_128, 4.177), (22_928, 1.321)), "m11": ((27_344, 6.300), (32_144, 1.851)),
    "xl": ((105_376, 24.279), (114_976, 6.623)),
}  # fmt: skip


@pytest.mark.parametrize("size", SESR_TABLE)
def test_sesr_has_the_weights_and_macs_of_the_table(size):
    for scale, expected in zip((2, 4), SESR_TABLE[size], strict=True):
        model = build_on_meta(lambda name=f"sesr_{size}_x{scale}": build(name))
        weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))
        x = torch.empty(1, 1, 720 // scale, 1280 // scale, device="meta")
        with FlopCounterMode(display=False) as counter:
            assert model(x).shape == (1, 1, 720, 1280)
        assert (weights, round(counter.get_total_flops() / 2e9, 3)) == expected


def as_published(name, **options):
    """In the paper's training form: clb everywhere, with the identity in the body alone."""
    return swap(build(name), "clb", where=EVERY_LAYER, **options)


def test_the_network_says_where_its_blocks_have_an_identity():
    assert build("sesr_m3_x4").slot_options == {f"body.{i}.conv": {"residual": True} for i in range(3)}


def test_sesr_in_training_has_the_published_parameters():
    model = as_published("sesr_m5_x2", width=256)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 4) == 318_720
    assert size_of(model) == 320_692  # with Keras' biases and slopes


def collapsed(block, identity):
    """(weight, bias) of a clb from its factors F_1, b_1, F_2, b_2, and an identity of 16 channels."""
    (first, second), (bias_1, bias_2) = (
        [parameter for parameter in block.parameters() if parameter.ndim == rank] for rank in (4, 1)
    )
    weight = torch.einsum("om,micd->oicd", second.flatten(1), first)
    if identity:
        weight = weight + F.pad(torch.eye(16, dtype=weight.dtype)[:, :, None, None], (1, 1, 1, 1))
    return weight, second.flatten(1) @ bias_1 + bias_2


@pytest.mark.parametrize("reparam", ["offline", "online"])
@pytest.mark.parametrize(("name", "scale"), [("sesr_m3_x2", 2), ("sesr_m3_x4", 4)])
def test_sesr_trains_and_deploys_as_published(name, scale, reparam, lived_in):
    model = small_steps(lived_in(as_published(name, width=16, reparam=reparam))).double().eval()
    body = [collapsed(slot.conv, identity=True) for slot in model.body]
    slopes = [slot.act.weight for slot in model.body]
    head, tail = (collapsed(block, identity=False) for block in (model.head, model.tail))
    x = torch.rand(2, 1, 7, 9, dtype=torch.float64)
    wanted = sesr_equation(x, head, body, slopes, tail, scale)
    assert ((wanted > 0) & (wanted < 1)).double().mean() > 0.5
    torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-10)
    deployed = fuse(model)
    assert size_of(deployed) == size_of(build(name))
    assert [type(module) for module in deployed.modules()] == [type(module) for module in build(name).modules()]
    torch.testing.assert_close(deployed(x), wanted, rtol=1e-10, atol=1e-10)


def test_training_macs_of_sesr_m5_are_the_published_ones():
    """41.77 G expanded and 1.84 G collapsed, the collapse by delta images included: batch 32 of 64x64."""
    macs = {}
    for reparam in ("offline", "online"):
        block = Variant("clb", {"reparam": reparam, "composition": "delta"})
        cell = net("sesr_m5_x2", block, where=Variant("where", EVERY_LAYER), image_size=64)
        got = count("macs", cell, "train")
        macs[reparam] = [round(number / 1e9, 3) for number in (32 * got["macs"], got["macs_kernel"])]
    assert macs == {"offline": [41.775, 0.0], "online": [1.772, 0.071]}


def test_a_cell_of_a_net_without_classes_has_an_image_and_the_mean_of_squares():
    subject = Subject(net("sesr_m3_x2", where=Variant("where", EVERY_LAYER), image_size=8))
    x = subject.input()
    assert x.shape == (2, 1, 8, 8)
    model = subject.model("train")
    y = model(x)
    assert y.shape == (2, 1, 16, 16)
    assert subject.loss(y, subject.target()).item() == pytest.approx((y**2).mean().item())
    assert not subject.has_classes
    assert subject.backbone.single is None


@pytest.mark.parametrize(("options", "tail_has_one"), [({}, False), ({"residual": True}, True)])
def test_what_is_asked_for_goes_before_what_the_network_says(options, tail_has_one):
    """With residual asked for, the 16 -> 16 tail of x4 has one as well: the authors' collapsed class."""
    model = as_published("sesr_m3_x4", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    x = torch.randn(1, 16, 5, 5)
    assert torch.equal(model.body[0].conv(x), x)
    assert torch.equal(model.tail(x), x if tail_has_one else torch.zeros_like(x))


def test_blocks_without_that_option_are_not_asked():
    assert swap(build("sesr_m3_x2"), "dbb", where=EVERY_LAYER)(torch.rand(1, 1, 8, 8)).shape == (1, 1, 16, 16)
