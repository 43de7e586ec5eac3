"""What is fused computes what was trained, and the original is left as it was."""

from __future__ import annotations

import pytest
import torch
from block_places import declared
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.blocks import BLOCKS, FusableBlock
from harness.errors import HarnessError
from harness.memory import build_on_meta
from harness.models import build, fuse, randomize_statistics, swap

FUSABLE = [name for name in BLOCKS if BLOCKS[name].fusable() and {3, 7} <= set(BLOCKS[name].kernel_sizes)]
ALIKE, STRIDED = (8, 8, 3, 1, 1, 1), (8, 16, 3, 2, 1, 1)
"""The layer, and what resnet18 has besides: blocks that do not take them have tests of their own."""
ONE_SIZE = [("orepa_1x1", 1), ("orepa_stem", 7)]
"""Blocks that do not fit where others do, and the layers that they take the place of."""
SIDE = 32


def relative_error(model, x):
    """Fused against eval, in float64, with statistics as after some training."""
    model = randomize_statistics(model.double(), 1, x.double()).eval()
    fused = fuse(model)
    with torch.no_grad():
        wanted, got = model(x.double()), fused(x.double())
    assert not any(isinstance(module, FusableBlock) for module in fused.modules())
    return float((got - wanted).abs().max() / wanted.abs().max()), fused


SMALL = [
    ("resnet18", None),
    ("mobilenetv2_050", None),
    ("convnext_tiny", 7),
    ("plain_a0", "repvgg-paper"),
    ("layer", None),
]
LARGE = [("resnet50", None), ("mobilenetv2_100", None)]
# Every block in a layer and in resnet18, every backbone with several blocks. What a block computes when it is fused stands in
# test_blocks_fused.py for every layout; here it is about finding the place, whose batch norm and activation go where.
EVERYWHERE = ("repvgg", "orepa")
BEHIND = {name for name in FUSABLE if BLOCKS[name].family == "attention"} - {"cbam"} | {"expand_cl"}
"""Convolutions with something behind them: alike to a network, and in a small one in test_models_presets.py. In
resnet18 expand_cl alone takes as long as half of the others, and computes what expand_ck and clb do."""
CASES = [
    (*case, block)
    for case in SMALL
    for block in FUSABLE
    if (case[0] == "layer" and declared(block, ALIKE))
    or (case[0] == "resnet18" and declared(block, STRIDED) and block not in BEHIND)
    or block in EVERYWHERE
]
CASES += [("resnet50" if size == 1 else "convnext_tiny", size, block) for block, size in ONE_SIZE]
CASES += [pytest.param(*case, block, marks=pytest.mark.slow) for case in LARGE for block in ("dbb",)]


@pytest.mark.parametrize(("backbone", "where", "block"), CASES)
def test_a_fused_model_computes_what_the_swapped_model_computes(backbone, where, block):
    size = {"c_in": 8, "c_out": 8} if backbone == "layer" else {}
    options = dict([BLOCKS[block].without_needs]) if BLOCKS[block].without_needs else {}
    model = swap(build(backbone, num_classes=10, **size), block, where=where, **options)
    error, _ = relative_error(model, torch.randn(2, size.get("c_in", 3), SIDE, SIDE))
    assert error < 1e-10


@pytest.mark.parametrize(
    ("name", "norms_left"),
    [("repvgg_a0", 0), ("mobileone_s0", 0), ("fastvit_t8", 10), ("repvit_m0_9", 0), ("repghostnet_100", 48)],
)
def test_timms_own_networks_fold_natively(name, norms_left):
    error, fused = relative_error(swap(build(name, num_classes=10), "native"), torch.randn(2, 3, 64, 64))
    assert error < 1e-10
    assert sum(isinstance(module, _BatchNorm) for module in fused.modules()) <= norms_left
    stray = [
        key for module in fused.modules() for key, value in vars(module).items() if isinstance(value, torch.Tensor)
    ]
    assert not stray


def test_a_plain_network_folds_its_batch_norms_and_keeps_timms_activations():
    error, fused = relative_error(build("mobilenetv2_050", num_classes=10), torch.randn(2, 3, SIDE, SIDE))
    assert error < 1e-10
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    assert sum(isinstance(module, nn.ReLU6) for module in fused.modules()) == 35


def test_a_batch_norm_without_affine_parameters_and_a_biased_convolution_fold():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="circular"), nn.BatchNorm2d(4, affine=False)
    )
    assert relative_error(model, torch.randn(2, 3, 9, 9))[0] < 1e-12


def test_parameter_counts_are_the_papers():
    plain = build_on_meta(lambda: build("plain_a0"))
    train = swap(plain, "repvgg", where="repvgg-paper")
    count = lambda model: sum(parameter.numel() for parameter in model.parameters())  # noqa: E731
    assert count(train) == count(build_on_meta(lambda: build("repvgg_a0"))) == 9_108_968  # the paper's 9.109 M
    assert count(fuse(train)) == 8_309_384  # 8.309 M


def test_the_original_is_left_as_it_was():
    model = swap(build("resnet18", num_classes=10), "repvgg")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fuse(model)
    assert model.training
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["repvgg_a0", "plain_a0"])
def test_a_fused_model_can_be_trained_and_what_was_frozen_stays_frozen(name):
    model = build(name, num_classes=10)
    next(model.parameters()).requires_grad_(False)  # in the stem, which folds away
    head = model.get_submodule("head.fc" if name == "repvgg_a0" else "head")
    head.weight.requires_grad_(False)
    fused = fuse(model)
    frozen = [key for key, parameter in fused.named_parameters() if not parameter.requires_grad]
    assert any(key.endswith(("head.weight", "fc.weight")) for key in frozen)
    loss = fused(torch.randn(2, 3, SIDE, SIDE)).sum()
    loss.backward()
    trainable = [parameter for parameter in fused.parameters() if parameter.requires_grad]
    assert len(trainable) > 40
    assert all(parameter.grad is not None for parameter in trainable)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["plain_a0", "repvgg_a0"])
def test_dtypes_are_kept_whatever_they_are_folded_in(name, dtype):
    model = build(name, num_classes=10).to(dtype).eval()
    if name == "plain_a0":
        model = swap(model, "repvgg")
    fused = fuse(model)
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
    assert torch.get_default_dtype() == torch.float32


def test_folding_draws_nothing_from_the_random_stream():
    model = build("repvgg_a0", num_classes=10)
    torch.manual_seed(5)
    fuse(model)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_models_on_meta_fuse_on_meta():
    for model in (swap(build_on_meta(lambda: build("plain_a0")), "repvgg"), build_on_meta(lambda: build("repvgg_a0"))):
        fused = fuse(model)
        assert all(tensor.is_meta for tensor in (*fused.parameters(), *fused.buffers()))


def test_the_report_tells_what_was_folded_and_what_stays():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    report = {change.name: change for change in fuse(model).fuse_report}
    assert report["1"].changed
    assert report["1"].reason == "2 follows it"
    assert not report["0"].changed
    assert report["0"].reason == "no convolution that it alone follows"


def test_nothing_to_fuse_is_an_error():
    with pytest.raises(HarnessError, match=r"harness\.swap"):
        fuse(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()))
    once = fuse(build("plain_a0", num_classes=10))
    with pytest.raises(HarnessError, match="nothing"):
        fuse(once)


def test_a_block_by_itself_can_be_fused():
    block = randomize_statistics(swap(build("layer", c_in=4, c_out=4), "repvgg").conv)
    fused = fuse(block)
    assert type(fused) is nn.Conv2d
    x = torch.randn(1, 4, 7, 7)
    torch.testing.assert_close(fused(x), block.eval()(x))


def test_randomised_statistics_do_not_explode_in_a_deep_branched_net():
    x = torch.randn(2, 3, 64, 64)
    model = randomize_statistics(build("mobileone_s0", num_classes=10), 0, x)
    assert model.training
    assert 0.01 < model.eval()(x).abs().max() < 100


def test_randomised_statistics_follow_the_seed():
    def one(seed):
        return randomize_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), seed).state_dict()

    assert torch.equal(one(1)["1.running_var"], one(1)["1.running_var"])
    assert not torch.equal(one(1)["1.running_var"], one(2)["1.running_var"])
    assert not torch.equal(one(1)["1.running_mean"], torch.zeros(4))
    assert not torch.equal(one(1)["1.weight"], torch.ones(4))
