"""Blocks, models and the clock on a real accelerator. Skipped as a whole where torch finds none, as in CI."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import metric_cells
import pytest
import torch
from block_places import images, make
from gradients import with_gradients
from torch import Tensor, nn

import harness
from harness import devices
from harness.blocks import BLOCKS
from harness.devices import Clock
from harness.devices.accelerator import AcceleratorDevice
from harness.errors import Unsupported
from harness.measuring.captured import captured
from harness.measuring.subject import Subject
from harness.memory import peak_step_bytes
from harness.metrics import METRICS
from harness.models import build, randomize_statistics
from harness.records import Reading, Variant

_found = torch.accelerator.current_accelerator(check_available=True)
if _found is None:
    pytest.skip("needs an accelerator", allow_module_level=True)
KIND = _found.type
if KIND == "mps":
    pytest.skip("needs float64, which mps has not", allow_module_level=True)

CELL = metric_cells.net(device=Variant(KIND), batch_size=16, image_size=96)

ROUNDED = {"ese": 1e-7, "coord": 1e-7} if KIND == "cuda" else {}
"""torch's hard-sigmoid and hard-swish multiply by a float32 1/6 on CUDA, in float64 too."""

LAUNCHED_ELSEWHERE = {"deformable"}
"""torchvision 0.26 launches its deformable convolution on the device's default stream, where no capture sees it."""

FOLDS = [name for name in BLOCKS if BLOCKS[name].fusable()]


@pytest.fixture
def device() -> AcceleratorDevice:
    device = devices.get(KIND)
    assert isinstance(device, AcceleratorDevice)
    return device


@pytest.fixture(autouse=True)
def _exactly(device):
    """Float32 products are computed as such: without TF32, so that a tolerance means something."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    with device.configured():
        yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def apart(found: Tensor, wanted: Tensor) -> float:
    """Relative L2 error; not a number is infinitely far."""
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu().double()
    error = float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))
    return error if error == error else float("inf")


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_computes_what_it_does_on_the_cpu(name, mode, lived_in):
    """Outputs, the input's gradient and every parameter's, in float64."""
    block = lived_in(make(name, 8, 8)).double().train(mode == "train")
    x = images(block, 4, 9, 11, torch.float64)
    there = copy.deepcopy(block).to(KIND)
    direction = torch.randn_like(copy.deepcopy(block)(x))
    wanted = with_gradients(block, x, direction)
    found = with_gradients(there, x.to(KIND), direction.to(KIND))
    scale = max(float(gradient.norm()) for gradient in wanted[1:])
    assert apart(found[0], wanted[0]) < ROUNDED.get(name, 1e-12)
    for mine, theirs in zip(found[1:], wanted[1:], strict=True):
        assert float((mine.cpu() - theirs).norm()) < ROUNDED.get(name, 1e-10) * max(scale, 1e-30)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("name", FOLDS)
def test_a_fused_block_is_the_trained_one(name, dtype, limit, lived_in):
    block = lived_in(make(name, 8, 8)).double().eval().to(KIND, dtype)
    x = images(block, 4, 9, 11, dtype).to(KIND)
    with torch.no_grad():
        wanted = block(x)
        fused = block.fused()
        assert apart(fused(x), wanted) < limit
    assert {parameter.device.type for parameter in fused.parameters()} == {KIND}


@pytest.mark.parametrize("name", BLOCKS)
def test_half_precision_and_channels_last_are_near(name, lived_in):
    """Under autocast and in the other memory format a block says the same, within what half precision can hold."""
    block = lived_in(make(name, 16, 16)).eval().to(KIND)
    x = images(block, 4, 12, 12).to(KIND)
    with torch.no_grad():
        wanted = block(x)
        there = copy.deepcopy(block).to(memory_format=torch.channels_last)
        assert apart(there(x.to(memory_format=torch.channels_last)), wanted) < 1e-5
        for dtype, limit in ((torch.float16, 2e-2), (torch.bfloat16, 1e-1)):
            with torch.autocast(KIND, dtype):
                assert apart(block(x), wanted) < limit, dtype


@pytest.mark.parametrize("name", BLOCKS)
def test_a_captured_pass_follows_its_input(name, device, lived_in):
    """A replay computes anew: with other values in the same input it says what the block says of them."""
    block = lived_in(make(name, 8, 8)).eval().to(KIND)
    x, other = (images(block, 2, 9, 11).to(KIND) for _ in range(2))
    with torch.inference_mode():
        wanted = [block(x).clone(), block(other).clone()]
        held = x.clone()
        if name in LAUNCHED_ELSEWHERE:
            with pytest.raises(Unsupported, match="computes something else"):
                captured(device, lambda: block(held), held)
            return
        replay = captured(device, lambda: block(held), held)
        assert torch.equal(held, x)
        for values, expected in zip((x, other), wanted, strict=True):
            held.copy_(values)
            assert apart(replay(), expected) < 1e-5


def test_a_step_that_looks_at_values_cannot_be_captured(device):
    x = torch.randn(8, device=KIND)
    with pytest.raises(Unsupported, match="cannot be captured") as refused:
        device.capture(lambda: x * float(x.sum()))
    assert refused.value.remedy
    assert apart(device.capture(lambda: x + 1)(), x + 1) == 0, "a failed capture leaves the device usable"


@pytest.mark.parametrize("block", ["repvgg", "dbb", "orepa"])
def test_a_swapped_network_fuses_there(block):
    model = harness.swap(build("resnet18", num_classes=10), block)
    randomize_statistics(model, 1)
    model = model.double().eval().to(KIND)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, device=KIND)
    with torch.no_grad():
        assert apart(harness.fuse(model)(x), model(x)) < 1e-10


def test_marks_agree_with_a_clock_on_the_wall(device):
    """The device's own time of a long batch is the host's, which waits for it."""
    a = torch.randn(4096, 4096, device=KIND)
    clock = Clock(device)
    for repeats in (20, 60):
        clock.time(lambda: a @ a, repeats)
        device.synchronize()
        began = time.perf_counter()
        marked = clock.time(lambda: a @ a, repeats)
        wall = time.perf_counter() - began
        assert 0.9 * wall < marked <= wall


def test_the_marks_of_a_batch_grow_with_its_steps(device):
    a = torch.randn(4096, 4096, device=KIND)
    clock = Clock(device)
    clock.time(lambda: a @ a, 20)
    once, thrice = (min(clock.time(lambda: a @ a, repeats) for _ in range(5)) for repeats in (20, 60))
    assert 2.8 < thrice / once < 3.2


def test_a_flush_empties_the_cache(device):
    """Reading a tensor that fits the cache takes longer once something else has filled it."""
    size = device.cache_bytes()
    if size is None:
        pytest.skip("the size of the cache is not known")
    x = torch.randn(size // 2 // 4, device=KIND)
    out = torch.empty((), device=KIND)
    clock = Clock(device)
    read = device.capture(lambda: torch.sum(x, dim=0, out=out))  # a short read would wait for its launch

    warm = min(clock.time(read, 50) / 50 for _ in range(10))
    cold = min(clock.time(read, flush=True) for _ in range(50))
    print(f"{4 * x.numel()} bytes of {size}: warm {warm * 1e6:.1f} us, cold {cold * 1e6:.1f} us")
    assert cold > 1.2 * warm


def test_the_allocator_is_read_to_the_byte(device):
    device.empty_cache()
    before = device.memory_now()
    device.memory_reset()
    held = torch.empty(1000, dtype=torch.float32, device=KIND)
    assert device.memory_now() - before == 4096, "4,000 bytes in blocks of 512"
    more = torch.empty(1 << 20, dtype=torch.uint8, device=KIND)
    assert device.memory_peak() - before == 4096 + (1 << 20)
    del held, more
    assert device.memory_now() == before
    assert device.memory_peak() - before == 4096 + (1 << 20)
    device.memory_reset()
    assert device.memory_peak() == before
    assert device.memory_reserved() >= before


def test_a_training_step_climbs_as_high_as_its_storages(device):
    """The allocator's peak is that of live storages, as the tracker counts them there; matrix products alone."""
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(2048, 2048), nn.ReLU()))).to(KIND)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
    x, target = torch.randn(8192, 2048, device=KIND), torch.randint(2048, (8192,), device=KIND)

    def step(enter=lambda phase: None) -> None:
        optimizer.zero_grad(set_to_none=True)
        enter("forward")
        loss = nn.functional.cross_entropy(model(x), target)
        enter("backward")
        loss.backward()
        enter("optimizer")
        optimizer.step()

    step()
    own = [*model.parameters(), *(slot["momentum_buffer"] for slot in optimizer.state.values()), x, target]
    optimizer.zero_grad(set_to_none=True)
    workspaces = device.memory_now() - sum(tensor.untyped_storage().nbytes() for tensor in own)
    counted = peak_step_bytes(model, optimizer, step, [x, target]).peak
    device.synchronize()
    device.memory_reset()
    step()
    device.synchronize()
    print(f"allocator {device.memory_peak()}, of it held by libraries {workspaces}, storages {counted}")
    assert 0.99 * counted < device.memory_peak() - workspaces < 1.01 * counted


def test_what_other_metrics_did_before_does_not_count(device):
    """The peak of a training step is the same in a fresh process's place and after every other count."""

    def peak() -> dict[str, Reading]:
        return {reading.metric: reading for reading in METRICS["train_memory"].readings(Subject(CELL), {})}

    alone = peak()
    for name in ("saved_memory", "fusion_error", "train_memory"):
        METRICS[name].readings(Subject(CELL), {})
    after = peak()
    print(alone["train_memory"], after["train_memory"])
    assert after["train_memory"].facts["held_before"] <= alone["train_memory"].facts["held_before"] + (64 << 20)
    assert after["train_memory"].values[0] == pytest.approx(alone["train_memory"].values[0], rel=0.02)
    assert alone["train_memory"].values[0] > alone["train_memory"].facts["predicted"]


@pytest.mark.parametrize("block", ["conv", "dbb", "orepa"])
def test_a_training_step_is_captured(block, device):
    """The captured step trains as the step does: `captured` compares what both do to parameters and statistics."""
    cell = replace(CELL, block=Variant(block))
    (eager,), (graph,) = (METRICS["train_step"].steps(Subject(cell), {"graph": on}) for on in (False, True))
    clock = Clock(device)
    for step in (eager, graph):
        clock.time(step.run, 5)
    times = [min(clock.time(step.run, 10) / 10 for _ in range(5)) for step in (eager, graph)]
    print(f"{block}: eager {times[0] * 1e3:.2f} ms, graph {times[1] * 1e3:.2f} ms")
    assert times[1] < 1.1 * times[0]


def test_what_the_device_says_of_itself(device):
    facts = device.facts()
    assert facts["model"]
    assert facts["memory_bytes"] > 1 << 30
    told = device.telemetry()
    if not told:
        pytest.skip(str(facts.get("no_telemetry")))
    assert 1e8 < told["sm_clock"] < 5e9
    assert 10 < told["temperature"] < 110
    assert 10 < told["power"] < 2000
    assert isinstance(told["throttle"], list)
