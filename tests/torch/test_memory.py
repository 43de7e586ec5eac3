"""Bytes counted by hand, by another tool, and on fake tensors: all the same."""

from __future__ import annotations

import gc
from contextlib import nullcontext

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness import blocks
from harness.errors import Unsupported
from harness.memory import (
    StorageTracker,
    build_on_meta,
    fake_tensors,
    live_bytes,
    meta_copy,
    peak_step_bytes,
    saved_bytes,
    saved_storages,
    to_fake,
)
from harness.memory.modules import running_module

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

    def step(enter=lambda phase: None):
        optimizer.zero_grad()
        enter("forward")
        loss = F.cross_entropy(model(x), y)
        enter("backward")
        loss.backward()
        enter("optimizer")
        optimizer.step()

    return optimizer, step


def test_the_peak_of_a_step_can_be_counted_by_hand():
    linear = nn.Linear(256, 256, bias=False)  # 256 KiB
    x = torch.randn(1024, 256)  # 1 MiB
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1, momentum=0.9, foreach=False)

    def step(enter):
        optimizer.zero_grad()
        enter("all of it")
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


def test_the_parts_of_a_peak_are_its_parameters_gradients_activations():
    first, second = nn.Linear(256, 512, bias=False), nn.Linear(512, 256, bias=False)
    model = nn.Sequential(first, nn.ReLU(), second)
    x = torch.randn(1024, 256)  # 1 MiB; hidden maps 2 MiB
    weight, hidden = first.weight.nbytes, 2 * x.nbytes
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)

    def step(enter):
        optimizer.zero_grad()
        enter("forward")
        loss = model(x).sum()
        enter("backward")
        loss.backward()
        enter("optimizer")
        optimizer.step()

    found = peak_step_bytes(model, optimizer, step, [x])
    parts = found.categories
    assert parts["parameters"] == parts["optimizer state"] == 2 * weight
    assert parts["input"] == x.nbytes
    # kept by the ReLU and the second layer, one map: the ReLU's result; and the loss. A sum needs no values.
    assert parts["activations"] == hidden + 512
    # highest in the ReLU's backward: the second weight has its gradient, the hidden map's goes in and comes out
    assert parts["gradients"] == weight
    assert 2 * hidden <= parts["temporaries"] <= 2 * hidden + 2 * 512
    assert sum(parts.values()) == sum(found.owners.values()) == found.peak
    assert found.at == "backward"
    assert found.phases["backward"] == found.peak
    # after backward nothing is left but weights, gradients, momentum, input and the loss
    assert found.phases["optimizer"] == 3 * 2 * weight + x.nbytes + 512 == found.before + 512
    # the first layer's output dies when the ReLU has its result
    assert found.phases["forward"] == 2 * 2 * weight + x.nbytes + 2 * hidden
    # weight, gradient (the second layer's alone), momentum; and the hidden map belongs to the ReLU that made it
    assert found.owners["2"] == 3 * weight
    assert found.owners["0"] == 2 * weight
    assert found.owners["1"] == hidden


def test_a_phase_knows_its_own_highest_point():
    with StorageTracker() as tracker:
        tracker.enter("one")
        x = torch.zeros(2048, dtype=torch.uint8)
        y = torch.zeros(1024, dtype=torch.uint8)
        del y
        tracker.enter("two")
        z = torch.zeros(512, dtype=torch.uint8)
        assert tracker.phases == {"one": 3072, "two": 2560}
        assert [(life.size, life.category) for life in tracker.at_peak()] == [
            (2048, "activations"),
            (1024, "temporaries"),
        ]
        del x, z


def test_a_module_that_raises_does_not_stay_the_running_one():
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    model = nn.Sequential(nn.Identity(), Broken())
    with running_module(model) as owner:
        with pytest.raises(ValueError, match="no"):
            model(torch.zeros(1))
        assert owner() == ""


def test_who_keeps_what_for_backward():
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 32, bias=False))
    x = torch.randn(4, 32)
    kept = {tuple(sorted(saved.owners)): saved.size for saved in saved_storages(model, x)}
    assert kept == {("0",): x.nbytes, ("1", "2"): x.nbytes}  # the ReLU's result serves its own and the layer's backward


def test_nothing_that_was_kept_for_backward_outlives_the_count():
    """Outputs that are saved (a ReLU's) hold their node, and the node holds what was put in their place."""

    class Kept(nn.Module):
        def forward(self, x):
            y = torch.relu(x)
            alive.append(StorageWeakRef(y.untyped_storage()))
            return y

    alive: list[StorageWeakRef] = []
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Kept(), nn.Conv2d(8, 8, 3), Kept())
    gc.disable()
    try:
        assert len(saved_storages(model, torch.randn(2, 3, 9, 9))) > 3
        assert [storage.expired() for storage in alive] == [True, True]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm2d(8),
        lambda: nn.BatchNorm2d(8, affine=False),
        lambda: nn.LayerNorm([8, 4, 4]),
        lambda: nn.LayerNorm([8, 4, 4], elementwise_affine=False),
        lambda: nn.GroupNorm(2, 8),
        lambda: nn.GroupNorm(2, 8, affine=False),
        lambda: nn.InstanceNorm2d(8, affine=True),
    ],
)
@pytest.mark.parametrize(
    ("weights", "inputs"), [("float32", "bfloat16"), ("float32", "float16"), ("bfloat16",) * 2, ("float32",) * 2]
)
def test_fake_norms_have_the_dtypes_of_the_cpus(norm, weights, inputs):
    def dtypes(module):
        seen = []

        class Seen(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                if "norm" in str(func):
                    seen.extend(leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
                return result

        x = torch.zeros(2, 8, 4, 4, dtype=getattr(torch, inputs), requires_grad=True)
        with Seen():
            module(x).float().sum().backward()
        return seen

    real = dtypes(norm().to(getattr(torch, weights)))
    bare = build_on_meta(norm).to(getattr(torch, weights))
    with fake_tensors() as mode:
        assert dtypes(to_fake(bare, mode)) == real


class Looks(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        if self.how == "value":
            return x * self.weight if x.sum().item() > 0 else x
        return x[torch.nonzero(x[:, 0, 0, 0])[:, 0]] * self.weight


@pytest.mark.parametrize(("how", "operator"), [("value", "_local_scalar_dense"), ("shape", "nonzero")])
def test_an_operator_that_looks_at_values_is_named(how, operator):
    bare = build_on_meta(lambda: Looks(how))
    with pytest.raises(Unsupported, match=operator), fake_tensors() as mode:
        to_fake(bare, mode)(torch.zeros(2, 3, 4, 4))


def resnet18_step(fake):
    build = lambda: timm.create_model("resnet18", num_classes=10)  # noqa: E731
    model = build_on_meta(build) if fake else build()
    with fake_tensors() if fake else nullcontext() as mode:
        model = to_fake(model, mode) if fake else model
        x, y = torch.zeros(2, 3, 64, 64), torch.zeros(2, dtype=torch.long)
        optimizer, step = sgd_step(model.train(), x, y)
        return peak_step_bytes(model, optimizer, step, [x, y]), saved_bytes(model, x)


def test_fake_and_real_steps_of_resnet18_agree_to_the_byte():
    assert resnet18_step(fake=True) == resnet18_step(fake=False)


def test_watching_modules_changes_no_count():
    model = timm.create_model("resnet10t", num_classes=10).train()
    x, y = torch.zeros(2, 3, 64, 64), torch.zeros(2, dtype=torch.long)
    optimizer, step = sgd_step(model, x, y)
    found = peak_step_bytes(model, optimizer, step, [x, y])
    with StorageTracker() as tracker:
        standing = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters()), x, y]
        tracker.register([*standing, *(s["momentum_buffer"] for s in optimizer.state.values())])
        del standing
        step()
    assert tracker.peak == found.peak


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
