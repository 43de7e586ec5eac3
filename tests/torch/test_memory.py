"""Bytes counted by hand, by another tool, and on fake tensors: all the same."""

from __future__ import annotations

import gc

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from harness import blocks
from harness.memory import (
    StorageTracker,
    build_on_meta,
    live_bytes,
    meta_copy,
    peak_step_bytes,
    saved_bytes,
    to_fake,
)

KIB = 1024


def test_a_chain_of_products_keeps_what_its_derivative_needs():
    x = torch.randn(16, 16, requires_grad=True)

    class Cubed(nn.Module):
        def forward(self, x):
            return x * x * x  # saves x and x*x; x counts once however often it is saved

    assert saved_bytes(Cubed(), x) == 2 * x.nbytes


def test_a_view_counts_with_its_whole_storage_once():
    x = torch.randn(64, 16, requires_grad=True)

    class Halves(nn.Module):
        def forward(self, x):
            return x[:32] * x[32:]

    assert saved_bytes(Halves(), x) == x.nbytes


def test_parameters_and_buffers_do_not_count():
    linear = nn.Linear(32, 32, bias=False)
    assert saved_bytes(linear, torch.randn(4, 32)) == 4 * 32 * 4  # the input; the weight's gradient needs it
    linear.requires_grad_(False)
    assert saved_bytes(linear, torch.randn(4, 32, requires_grad=True)) == 0  # only the weight is needed


def test_conv_and_batch_norm_keep_two_maps():
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
    x = torch.randn(2, 8, 10, 10)
    statistics = 2 * 8 * 4  # the batch's mean and inverse deviation
    assert saved_bytes(block, x) == 2 * x.nbytes + statistics


@pytest.mark.parametrize(
    ("block", "maps"),
    [("conv", 2.00), ("repvgg", 3.00), ("acb", 4.00), ("dbb", 9.15), ("orepa", 2.17), ("orepa_vgg", 3.15)],
)
def test_blocks_keep_as_many_maps_as_the_authors_code(block, maps):
    x = torch.randn(8, 64, 56, 56)
    kept = saved_bytes(blocks.create(block, 64, 64), x) / x.nbytes
    if block.startswith("orepa"):  # the part beyond the whole maps depends on how the kernel is composed
        assert int(maps) <= kept <= maps
    else:
        assert kept == pytest.approx(maps, abs=0.005)


def test_counting_leaves_the_mode_as_it_was():
    block = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).eval()
    block[0].train()
    saved_bytes(block, torch.randn(2, 2, 4, 4))
    assert [module.training for module in block.modules()] == [False, True, False]


def test_the_tracker_counts_storages_that_live_together():
    x = torch.zeros(KIB, dtype=torch.uint8)
    with StorageTracker() as tracker:
        tracker.register([x, x.view(2, 512)])
        assert tracker.current == KIB
        y = x + 1
        z = y[:512]
        del y
        assert tracker.current == 2 * KIB  # z keeps the whole storage
        del z
        assert tracker.current == KIB
        (x + 1).add_(1)
        assert (tracker.current, tracker.peak) == (KIB, 2 * KIB)
        tracker.reset_peak()
        assert tracker.peak == KIB


def test_storages_are_rounded_up_to_512_bytes():
    assert live_bytes([torch.zeros(1), torch.zeros(129)]) == 512 + 1024
    assert live_bytes([torch.zeros(0)]) == 0


def test_a_storage_that_is_resized_counts_with_its_new_size():
    with StorageTracker() as tracker:
        x = torch.zeros(512, dtype=torch.uint8)
        x.resize_(2048)
        assert tracker.current == 2048
        del x
        assert tracker.current == 0


def test_a_tensor_that_outlives_the_tracker_does_no_harm():
    with StorageTracker() as tracker:
        x = torch.zeros(512, dtype=torch.uint8)
    del x
    gc.collect()
    assert (tracker.current, tracker.peak) == (0, 512)


def sgd_step(model, x, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    return optimizer, step


def test_the_peak_of_a_step_can_be_counted_by_hand():
    linear = nn.Linear(256, 256, bias=False)  # 256 KiB
    x = torch.randn(1024, 256)  # 1 MiB
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9, foreach=False)

    def step():
        optimizer.zero_grad()
        linear(x).sum().backward()
        optimizer.step()

    found = peak_step_bytes(linear, optimizer, step, [x])
    weight, x_bytes = linear.weight.nbytes, x.nbytes
    assert found.before == x_bytes + 3 * weight  # weight, gradient, momentum
    # In backward: input, weight, momentum, the new gradient, and small change: the sum and its gradient, both
    # scalars. The output is gone by then (sum needs only its shape), its gradient is an expanded scalar.
    output = x_bytes
    assert found.peak >= x_bytes + 2 * weight + output
    assert found.peak <= x_bytes + 3 * weight + output + 4 * 512


def resnet18_step(fake):
    mode = FakeTensorMode()
    build = lambda: timm.create_model("resnet18", num_classes=10)  # noqa: E731
    model = to_fake(build_on_meta(build), mode) if fake else build()
    with mode if fake else torch.enable_grad():
        x, y = torch.zeros(2, 3, 64, 64), torch.zeros(2, dtype=torch.long)
        optimizer, step = sgd_step(model.train(), x, y)
        return peak_step_bytes(model, optimizer, step, [x, y]), saved_bytes(model, x)


def test_fake_and_real_steps_of_resnet18_agree_to_the_byte():
    assert resnet18_step(fake=True) == resnet18_step(fake=False)


@pytest.mark.slow
def test_torchs_own_tracker_finds_the_same_peak():
    mem_tracker = pytest.importorskip("torch.distributed._tools.mem_tracker")
    model = timm.create_model("resnet18", num_classes=10).train()
    x, y = torch.zeros(2, 3, 64, 64), torch.zeros(2, dtype=torch.long)
    optimizer, step = sgd_step(model, x, y)
    ours = peak_step_bytes(model, optimizer, step, [x, y]).peak
    theirs = mem_tracker.MemTracker()
    theirs.track_external(model, optimizer, x, y)
    with theirs:
        step()
    peak = theirs.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert abs(ours - peak) <= 0.001 * peak


def test_a_meta_copy_has_no_storage_and_leaves_the_original_alone():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)).eval()
    model[0].weight.requires_grad_(False)
    bare = meta_copy(model)
    assert all(tensor.is_meta for tensor in (*bare.parameters(), *bare.buffers()))
    assert not bare[0].weight.requires_grad
    assert bare[0].bias.requires_grad
    assert not bare.training
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_a_tied_parameter_stays_one_when_it_turns_fake():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

    fake = to_fake(build_on_meta(Tied), FakeTensorMode())
    assert fake.one.weight is fake.two.weight
    assert fake.one.bias is not fake.two.bias
    assert fake.one.weight.device == torch.device("cpu")
