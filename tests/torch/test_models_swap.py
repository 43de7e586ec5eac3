"""A block takes the place of the convolutions that `where` picks, and of nothing else."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from harness import blocks
from harness.errors import HarnessError, UnknownName, Unsupported
from harness.memory import build_on_meta
from harness.models import build, fuse, swap
from harness.where import PRESETS, Where, parse


def changed(model):
    return [change.name for change in model.swap_report if change.changed]


def left(model):
    return {change.name: change.reason for change in model.swap_report if not change.changed}


def on_meta(name, **options):
    return build_on_meta(lambda: build(name, **options))


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_resnet18_swaps_its_3x3_layers_and_nothing_else():
    model = build("resnet18", num_classes=10)
    before = state(model)
    new = swap(model, "repvgg")
    assert len(changed(new)) == 16
    assert all(isinstance(new.get_submodule(name), blocks.BLOCKS["repvgg"]) for name in changed(new))
    assert left(new)["conv1"] == "the stem stays unless named"
    assert left(new)["layer2.0.downsample.0"] == "kernel size 1 is not among 3"
    assert isinstance(new.bn1, nn.BatchNorm2d)
    assert isinstance(new.layer1[0].bn1, nn.Identity)
    assert new(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_swapped_conv_block_computes_what_the_layer_computed():
    model = build("resnet18", num_classes=10).eval()
    new = swap(model, "conv")
    for name in changed(new):
        branch, conv = new.get_submodule(name).branch, model.get_submodule(name)
        branch.conv.weight.data.copy_(conv.weight)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(new(x), model(x))


def test_a_seed_gives_the_same_blocks():
    def one():
        torch.manual_seed(3)
        return swap(build("resnet18", num_classes=10), "dbb").state_dict()

    first, second = one(), one()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_activation_inside_timms_batch_norm_stays():
    new = swap(build("mobilenetv2_050", num_classes=10), "conv", where={"depthwise": True})
    after = new.get_submodule("blocks.1.0.bn2")
    assert [type(child) for child in after] == [nn.ReLU6]


def test_torchvisions_models_work_too():
    new = swap(torchvision.models.mobilenet_v2(num_classes=10), "conv")
    assert len(changed(new)) == 17
    assert left(new)["features.0.0"] == "the stem stays unless named"


@pytest.mark.parametrize("size", [5, 1])
def test_the_kernel_size_axis_resizes_what_was_picked_and_keeps_the_maps(size):
    model = on_meta("resnet18")
    new = swap(model, "conv", kernel_size=size)
    sizes = {new.get_submodule(name).spec.kernel_size for name in changed(new)}
    assert sizes == {size}
    assert new.layer2[0].downsample[0].kernel_size == (1, 1)
    assert new(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 1000)


def test_a_1x1_layer_that_is_named_keeps_its_size():
    new = swap(on_meta("resnet18"), "conv", where={"name": "layer2.0.downsample.0"}, kernel_size=5)
    assert changed(new) == ["layer2.0.downsample.0"]
    assert new.layer2[0].downsample[0].spec.kernel_size == 1


def test_the_only_convolution_of_a_layer_is_not_a_stem():
    new = swap(build("layer", c_in=4, c_out=6, stride=2), "repvgg")
    assert changed(new) == ["conv"]
    assert new(torch.zeros(2, 4, 9, 9)).shape == (2, 6, 5, 5)


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("repvgg-paper", 22),
        ("dbb-paper", 22),
        ("orepa-paper", 21),
        (None, 21),
        (3, 21),
        ({"stem": True, "name": "stem*"}, 1),
        ({"name": "stem.conv"}, 1),
        ({"name": ["stages.0.*", "stages.3.*"]}, 3),
        ({"stride": 2}, 4),
        ({"stride": 2, "stem": True}, 5),
        ({"kernel_size": [3, 7]}, 21),
        ({"repvgg-paper": {"stride": 1}}, 17),
    ],
)
def test_where_picks_the_layers_it_says(where, count):
    assert len(changed(swap(on_meta("plain_a0"), "conv", where=where))) == count


def test_depthwise_layers_can_be_left_out():
    with pytest.raises(HarnessError, match="3x3"):
        swap(on_meta("mobilenetv2_050"), "conv", where={"depthwise": False})


def test_nothing_matched_is_an_error_that_names_the_sizes_there_are():
    with pytest.raises(HarnessError, match=r"7x7 \(18 layers\)\n.*where=\{'kernel_size': 7\}"):
        swap(on_meta("convnext_tiny"), "conv")


def test_a_convolution_without_a_batch_norm_is_replaced_alone():
    new = swap(on_meta("convnext_tiny"), "conv", where=7)
    assert len(changed(new)) == 18
    assert type(new.stages[0].blocks[0].norm).__name__ == "LayerNorm"


class Odd(nn.Module):
    """Layers that look replaceable, each with a reason why its batch norm or the layer itself must stay."""

    def __init__(self):
        super().__init__()
        conv = lambda: nn.Conv2d(4, 4, 3, padding=1)  # noqa: E731
        self.stem, self.twice, self.never, self.plain = conv(), conv(), conv(), conv()
        self.also_used, self.common_1, self.common_2, self.dropped = conv(), conv(), conv(), conv()
        self.valid = nn.Conv2d(4, 4, 3)
        self.reflected = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.flat = nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
        self.even, self.uneven = nn.Conv2d(4, 4, 4), nn.Conv2d(4, 4, 3, padding=(1, 2))
        self.tied_1, self.tied_2 = conv(), conv()
        self.tied_2.weight = self.tied_1.weight
        self.norm, self.norm_used, self.norm_common, self.norm_dropped = (nn.BatchNorm2d(4) for _ in range(4))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        x = self.twice(self.twice(self.stem(x)))
        x = self.norm(self.plain(x))
        y = self.also_used(x)
        x = self.norm_used(y) + y
        x = self.norm_common(self.common_1(x)) + self.norm_common(self.common_2(x))
        x = self.norm_dropped(self.dropout(self.dropped(x)))
        x = self.flat(self.reflected(self.tied_2(self.tied_1(x))))
        return self.valid(self.uneven(self.even(x)))


def test_layers_that_cannot_be_replaced_say_why():
    new = swap(Odd(), "conv")
    assert sorted(changed(new)) == ["also_used", "common_1", "common_2", "dropped", "plain", "valid"]
    assert left(new) == {
        "stem": "the stem stays unless named",
        "twice": "runs 2 times in one forward pass",
        "never": "does not run as a module",
        "even": "its kernel is 4x4, and even kernels have no centre",
        "uneven": "its padding is (1, 2), which differs between rows and columns",
        "reflected": "its padding is reflect",
        "flat": "its kernel is 1x3, not square",
        "tied_1": "its weights are shared with another layer",
        "tied_2": "its weights are shared with another layer",
    }
    assert isinstance(new.norm, nn.Identity)
    for kept in (new.norm_used, new.norm_common, new.norm_dropped):
        assert isinstance(kept, nn.BatchNorm2d)  # not the convolution's alone


def test_a_linear_layer_written_as_a_convolution_stays():
    """timm's VGG has one of 7x7 behind the last pool; OREPA's rule would take it for a large stem."""
    new = swap(build("vgg11"), "orepa", where="orepa-paper")
    assert left(new)["pre_logits.fc1"] == "it sees the whole map at once: a linear layer"
    assert changed(new) == [*(f"features.{i}" for i in (3, 6, 8, 11, 13, 16, 18)), "pre_logits.fc2"]


def test_a_model_that_looks_at_values_runs_on_real_tensors_instead():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

        def forward(self, x):
            return self.second(self.first(x)) if x.sum() < 10 else x  # meta tensors have no value

    assert changed(swap(Looks(), "conv")) == ["second"]


def test_a_model_that_cannot_run_at_all_is_the_users_problem():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x):
            raise RuntimeError("no such thing")

    with pytest.raises(HarnessError, match="no such thing"):
        swap(Broken(), "conv")


def test_dtype_device_and_mode_stay():
    model = build("plain_a0", num_classes=10).to(torch.bfloat16).eval()
    new = swap(model, "conv")
    assert {parameter.dtype for parameter in new.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in new.modules())
    bare = swap(on_meta("plain_a0"), "conv")
    assert all(tensor.is_meta for tensor in (*bare.parameters(), *bare.buffers()))


def test_a_block_is_not_replaced_again():
    with pytest.raises(HarnessError, match="block already"):
        swap(swap(build("layer", c_in=4, c_out=4), "repvgg"), "conv")


def test_what_a_block_refuses_names_the_layer():
    with pytest.raises(Unsupported, match="layer conv, Conv2d"):
        swap(build("layer", c_in=4, c_out=4), "conv", kernel_size=4)


def test_native_is_a_copy_of_what_reparameterizes_itself():
    model = build("repvgg_a0", num_classes=10)
    new = swap(model, "native")
    assert new is not model
    assert {change.before.split("(")[0] for change in new.swap_report} == {"RepVggBlock"}
    with pytest.raises(Unsupported, match="repvgg_a0"):
        swap(on_meta("resnet18"), "native")
    with pytest.raises(HarnessError, match="block native"):
        swap(on_meta("repvgg_a0"), "conv")


def test_the_stem_is_found_by_running_and_by_timms_word():
    new = swap(build_on_meta(lambda: timm.create_model("resnet26d")), "conv", where={"stem": True})
    assert "conv1.0" in changed(new)
    new = swap(build_on_meta(lambda: timm.create_model("resnet26d")), "conv")
    assert left(new)["conv1.0"] == "the stem stays unless named"


@pytest.mark.parametrize(
    ("where", "error", "says"),
    [
        ("orepa-papr", UnknownName, "orepa-paper"),
        ({"kernel": 3}, UnknownName, "kernel_size"),
        ({"kernel_size": 0}, HarnessError, "positive integer"),
        ({"kernel_size": []}, HarnessError, "positive integer"),
        ({"stem": "yes"}, HarnessError, "stem: true"),
        ({"name": 3}, HarnessError, "layer name"),
        (3.5, HarnessError, "kernel size"),
        (True, HarnessError, "kernel size"),
    ],
)
def test_a_where_that_cannot_be_meant_is_refused(where, error, says):
    with pytest.raises(error, match=says):
        parse(where)


def test_where_parses_what_it_prints():
    assert parse(None) == parse("default") == parse({}) == Where()
    assert parse({"dbb-paper": {}}) == PRESETS["dbb-paper"]
    assert parse(parse("repvgg-paper")) is PRESETS["repvgg-paper"]


def blocks_in(model):
    return {name: type(module).__name__ for name, module in model.named_modules() if isinstance(module, blocks.Block)}


def test_the_papers_preset_puts_orepas_companions_into_1x1_layers_and_the_stem():
    new = swap(on_meta("resnet50"), "orepa", where="orepa-paper")
    found = blocks_in(new)
    assert found.pop("conv1") == "OREPAStem"
    ones = [name for name in found if name.endswith(("conv1", "conv3", "downsample.0"))]
    assert {found.pop(name) for name in ones} == {"OREPA1x1"}
    assert len(ones) == 2 * 16 + 4  # with the shortcuts of bottlenecks
    assert set(found.values()) == {"OREPA"}
    assert len(found) == 16
    said = {change.name: change.reason for change in new.swap_report}
    assert "companion" in said["conv1"]


def test_the_shortcuts_of_basic_blocks_stay_and_other_blocks_have_no_companions():
    found = blocks_in(swap(on_meta("resnet18"), "orepa", where="orepa-paper"))
    assert found.pop("conv1") == "OREPAStem"
    assert set(found.values()) == {"OREPA"}
    assert len(found) == 16
    assert set(blocks_in(swap(on_meta("resnet50"), "dbb", where="orepa-paper")).values()) == {"DBB"}


def test_companions_take_the_options_they_have_and_keep_their_layers_sizes():
    options = {"reparam": "offline", "scaling": "scalar", "prior": False}
    new = swap(on_meta("resnet50"), "orepa", where="orepa-paper", kernel_size=5, **options)
    stem, one, five = new.conv1, new.layer1[0].conv1, new.layer1[0].conv2
    assert (stem.reparam, one.reparam, five.reparam) == ("offline",) * 3
    assert (stem.spec.kernel_size, one.spec.kernel_size, five.spec.kernel_size) == (7, 1, 5)
    assert one.scales.shape == (2, 1)
    assert "prior" not in five.branches.used


def test_a_network_with_companions_folds_exactly(lived_in):
    model = lived_in(swap(build("test_resnet", num_classes=10), "orepa", where="orepa-paper")).double().eval()
    x = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    torch.testing.assert_close(fuse(model)(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv3d])
def test_a_network_of_another_rank_is_refused_with_a_remedy(conv):
    with pytest.raises(HarnessError, match=r"\(N, C, H, W\)") as refusal:
        swap(nn.Sequential(conv(3, 8, 3)), "repvgg")
    assert "two-dimensional" in refusal.value.remedy


@pytest.mark.parametrize(
    ("kernel_size", "padding", "asked"), [(3, 0, None), (5, 1, None), (3, 3, None), (5, 2, 3), (3, 0, 5)]
)
@pytest.mark.parametrize("block", ["repvgg", "acb", "dbb", "orepa"])
def test_a_layer_keeps_its_padding_and_its_map(block, kernel_size, padding, asked, lived_in):
    """Resized too: with the reach of the kernel the zeros grow or shrink."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, kernel_size, padding=padding)).double()
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    new = lived_in(swap(model, block, where=kernel_size, kernel_size=asked)).eval()
    assert new(x).shape == model(x).shape
    torch.testing.assert_close(fuse(new)(x), new(x), rtol=1e-10, atol=1e-10)
