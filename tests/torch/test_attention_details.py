"""Attention blocks at their edges: what they start as, small maps and channels, one sample, dtypes, what they refuse."""

from __future__ import annotations

import pytest
import torch
from timm.layers import SEModule
from torch import nn

from harness import blocks
from harness.errors import Unsupported

D = torch.float64
NAMES = ["se", "ese", "eca", "ceca", "ge", "gc", "cbam", "bam", "srm", "ran", "coord", "sk", "splat"]
OPTIONS = [
    *((name, {}) for name in NAMES),
    ("se", {"divisor": 1, "bias": False}),
    ("ge", {"extent": 0}),
    ("ge", {"extent": 0, "learned": "mlp"}),
    ("ge", {"extent": 2, "learned": "depthwise"}),
    ("ge", {"extent": 4, "learned": "mlp"}),
    ("cbam", {"bias": True}),
    ("bam", {"combine": "sum", "attention_norm": "layer"}),
    ("srm", {"attention_norm": "layer"}),
    ("sk", {"split_input": True, "divisor": 8, "attention_norm": "layer"}),
    ("splat", {"radix": 1, "attention_norm": "none"}),
    ("splat", {"radix": 4, "attention_norm": "layer"}),
]


@pytest.mark.parametrize(
    ("name", "options", "last", "factor"),
    [
        ("se", {}, "fc2", 0.5),
        ("ese", {}, "fc", 0.5),
        ("eca", {}, "conv", 0.5),
        ("ceca", {}, "conv", 0.5),
        ("ge", {"extent": 2, "learned": "mlp"}, "excite.2", 0.5),
        ("gc", {}, "mlp_scale.fc2", 0.5),
        ("bam", {}, "spatial.9", 1.5),
        ("ran", {}, "out", 1.5),
        ("srm", {}, "norm", 0.5),
    ],
)
def test_an_attention_whose_last_layer_says_nothing_scales_everything_alike(name, options, last, factor, lived_in):
    block = lived_in(blocks.create(name, 8, 8, **options)).double()
    for parameter in block.after.get_submodule(last).parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(3, 8, 7, 10, dtype=D)
    torch.testing.assert_close(block(x), factor * block.branch(x), rtol=1e-12, atol=1e-12)


def test_a_selection_that_says_nothing_takes_the_mean(lived_in):
    x = torch.randn(3, 8, 7, 10, dtype=D)
    sk, splat = (lived_in(blocks.create(name, 8, 8)).double().eval() for name in ("sk", "splat"))
    for parameter in (sk.attention.select.weight, splat.select.weight, splat.select.bias):
        nn.init.zeros_(parameter)
    torch.testing.assert_close(sk(x), (sk.paths[0](x) + sk.paths[1](x)) / 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(splat(x), splat.conv(x).relu().reshape(3, 2, 8, 7, 10).mean(1), rtol=1e-12, atol=1e-12)


def test_srm_starts_with_zeros_and_so_by_halving():
    block = blocks.create("srm", 4, 8).double()
    assert not block.after.weight.any()
    x = torch.randn(3, 4, 7, 10, dtype=D)
    torch.testing.assert_close(block(x), block.branch(x) / 2, rtol=1e-12, atol=1e-12)
    block(x).square().sum().backward()
    assert block.after.weight.grad.abs().min() > 0


def test_srm_of_a_constant_map_has_gradients():
    block = blocks.create("srm", 4, 4)
    nn.init.normal_(block.after.weight)
    u = torch.ones(2, 4, 5, 5) * torch.randn(2, 4, 1, 1)
    u.requires_grad_()
    block.after(u).sum().backward()
    assert u.grad.isfinite().all()


def test_gather_excite_of_the_whole_map_with_a_perceptron_is_squeeze_and_excitation(lived_in):
    ge = lived_in(blocks.create("ge", 4, 40, extent=0, learned="mlp")).double().after
    se = SEModule(40, rd_divisor=1).double()
    for target, source in zip(se.parameters(), ge.parameters(), strict=True):
        target.data.copy_(source.data)
    x = torch.randn(2, 40, 7, 10, dtype=D)
    torch.testing.assert_close(ge(x), se(x), rtol=1e-14, atol=1e-14)


def test_an_extent_beyond_the_map_is_the_whole_map(lived_in):
    near, whole = (lived_in(blocks.create("ge", 4, 4, extent=extent)).double() for extent in (8, 0))
    whole.load_state_dict(near.state_dict())
    for height, width, same in [(8, 5, True), (1, 1, True), (9, 5, False)]:
        x = torch.randn(2, 4, height, width, dtype=D)
        assert (near(x) - whole(x)).abs().max().item() < 1e-12 if same else not torch.allclose(near(x), whole(x))


@pytest.mark.parametrize("name", ["gc", "bam"])
@pytest.mark.parametrize("channels", [4, 6, 8, 12, 24, 64])
def test_few_channels_do_not_leave_an_attention_dead(name, channels, lived_in):
    """With a hidden width of one, timm's gc has no gradient but for its last bias, and bam's first scale has none."""
    block = lived_in(blocks.create(name, channels, channels)).double()
    x = torch.randn(8, channels, 8, 8, dtype=D)
    (block(x) * torch.randn_like(x)).sum().backward()
    dead = [label for label, parameter in block.named_parameters() if parameter.grad.abs().max() < 1e-6]
    behind = {"gc": {"conv_attn.bias"}, "bam": {"channel.0.bias", "spatial.0.bias", "spatial.3.bias", "spatial.6.bias"}}
    assert set(dead) == {f"after.{label}" for label in behind[name]}


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_one_sample_is_trained_on_or_refused_by_name(name, options):
    block = blocks.create(name, 8, 8, **options)
    x = torch.randn(1, 8, 18, 21)
    if options.get("attention_norm", "batch") == "batch" and name in ("bam", "srm", "sk", "splat"):
        with pytest.raises(Unsupported, match="batch of 1") as refused:
            block(x)
        assert "attention_norm: layer" in refused.value.remedy
        block = blocks.create(name, 8, 8, **{**options, "attention_norm": "layer"})
    block(x).sum().backward()
    for size in [(18, 21), (1, 1), (2, 1)]:
        assert block.eval()(torch.randn(1, 8, *size)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "size"), [("ge", {"extent": 8, "learned": "depthwise"}, 8), ("ran", {}, 2)]
)
def test_one_sample_pooled_to_one_pixel_is_refused_by_name(name, options, size):
    block = blocks.create(name, 4, 4, **options)
    with pytest.raises(Unsupported, match="pooled to one pixel") as refused:
        block(torch.randn(1, 4, size, size))
    assert "2 or more" in refused.value.remedy
    block(torch.randn(2, 4, size, size))
    block(torch.randn(1, 4, size + 1, size))
    block.eval()(torch.randn(1, 4, size, size))


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_dtypes_and_layouts(name, options, lived_in):
    block = lived_in(blocks.create(name, 8, 8, **options)).eval()
    x = torch.randn(3, 8, 9, 14)
    wanted = block(x)
    for sample in range(3):
        torch.testing.assert_close(block(x[sample : sample + 1])[0], wanted[sample], rtol=1e-4, atol=1e-5)
    block.to(memory_format=torch.channels_last)
    last = block(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, wanted, rtol=1e-4, atol=1e-5)
    assert all(tensor.ndim < 5 for tensor in block.state_dict().values())
    block.train()
    for fed in (x, x.to(memory_format=torch.channels_last)):
        with torch.autocast("cpu", torch.bfloat16):
            y = block(fed)
        assert y.dtype == torch.bfloat16
        y.float().square().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in block.parameters())
    block = block.bfloat16().train()
    block.zero_grad()
    y = block(x.bfloat16())
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


@pytest.mark.parametrize("name", ["sk", "splat"])
def test_a_softmax_in_float32_as_autocast_has_it_on_cuda_does_not_widen_the_map(name, monkeypatch):
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda self, dim: softmax(self, dim, dtype=torch.float32))
    block = blocks.create(name, 8, 8).bfloat16().eval()
    assert block(torch.randn(2, 8, 9, 14, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "options"), [case for case in OPTIONS if case[1]], ids=str)
def test_options_export_with_any_batch_and_compile_into_one_graph(name, options, lived_in):
    """With the defaults the tests of all blocks do it."""
    torch.compiler.reset()
    block = lived_in(blocks.create(name, 4, 4, **options)).eval()
    dynamic = {"x_NCHW": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(block, (torch.randn(2, 4, 6, 6),), dynamic_shapes=dynamic)
    x = torch.randn(5, 4, 6, 6)
    torch.testing.assert_close(exported.module()(x), block(x), rtol=1e-5, atol=1e-5)
    compiled = torch.compile(block.train(), backend="aot_eager", fullgraph=True)
    compiled(x).sum().backward()


@pytest.mark.parametrize(
    ("name", "place", "options", "problem", "remedy"),
    [
        ("ge", {}, {"extent": 0, "learned": "depthwise"}, "must know its size", "extent 2, 4 or 8"),
        ("sk", {"kernel_size": 5}, {}, "no kernel size 5", "use 3"),
        ("sk", {"groups": 4}, {"split_input": True}, "not a multiple of 8", "multiples of 8"),
        ("sk", {"c_in": 3}, {"split_input": True}, "not a multiple of 2", "multiples of 2"),
        ("splat", {"groups": 2}, {}, "no groups", "groups 1"),
        ("splat", {"c_in": 3}, {}, "not a multiple of 2", "multiples of 2"),
        ("splat", {"c_in": 6, "c_out": 8}, {"radix": 4}, "not a multiple of 4", "multiples of 4"),
    ],
)
def test_what_a_block_cannot_do_is_refused_with_a_remedy(name, place, options, problem, remedy):
    with pytest.raises(Unsupported, match=problem) as refused:
        blocks.create(name, **{"c_in": 4, "c_out": 4, **place}, **options)
    assert remedy in refused.value.remedy
