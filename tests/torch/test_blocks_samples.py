"""Every block on batches: samples do not meet in eval, kernels per sample are a loop's, and the formats it is fed in."""

from __future__ import annotations

import copy
import importlib
import io
import pkgutil
from itertools import product

import pytest
import torch
from block_places import images, make, nearest, places, usual_size
from gradients import with_gradients
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import harness.blocks
from harness import blocks
from harness.blocks import BLOCKS, ConvSpec
from harness.blocks.parts.per_sample import PerSampleBlock, Tempered, convolve_each
from harness.errors import Unsupported
from harness.training import Annealing

DYNAMIC = [name for name in BLOCKS if issubclass(BLOCKS[name], PerSampleBlock)]

LAYOUTS = [(8, 8, 1, 1, 1), (8, 12, 2, 2, 1), (8, 8, 1, 8, 2), (8, 6, 1, 1, 2), (8, 4, 2, 1, 1)]
"""c_in, c_out, stride, groups, dilation."""


def places_of(name: str) -> list[tuple[int, ...]]:
    sizes = dict.fromkeys((usual_size(name), nearest(name, (8, 8, 1, 1, 1, 1))[2]))
    return places(name, [(i, o, k, s, g, d) for k, (i, o, s, g, d) in product(sizes, LAYOUTS)])


def close(found: list[Tensor], wanted: list[Tensor]) -> None:
    scale = max(float(tensor.abs().max()) for tensor in wanted[1:])
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-11, atol=1e-11)
    for a, b in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11 * max(1.0, scale))


@pytest.mark.parametrize("name", BLOCKS)
def test_samples_do_not_meet_in_eval(name, lived_in):
    """A batch's outputs and gradients are those of its samples one by one, where a grouped kernel is a plain one."""
    for place, batch in product(places_of(name), (1, 2, 5)):
        block = lived_in(blocks.create(name, *place)).double().eval()
        x = images(block, batch, 7, 9, torch.float64)
        direction = torch.randn_like(block(x))
        together = with_gradients(block, x, direction)
        apart = [with_gradients(block, x[i : i + 1], direction[i : i + 1]) for i in range(batch)]
        outputs, inputs, *parameters = zip(*apart, strict=True)
        close(together, [torch.cat(outputs), torch.cat(inputs), *(sum(each[1:], each[0]) for each in parameters)])


def loop(x_NCHW: Tensor, weight_NOIHW: Tensor, spec: ConvSpec) -> Tensor:
    """A convolution for each sample, as one would write it first."""
    kernels = weight_NOIHW.reshape(len(x_NCHW), spec.c_out, -1, spec.kernel_size, spec.kernel_size)
    options = (None, spec.stride, spec.padding, spec.dilation, spec.groups)
    return torch.cat([F.conv2d(x[None], kernel, *options) for x, kernel in zip(x_NCHW, kernels, strict=True)])


@pytest.mark.parametrize("name", DYNAMIC)
def test_grouped_kernels_are_a_loop_over_samples(name, lived_in, monkeypatch):
    """In training, where the norms see the whole batch."""
    found_in = pkgutil.walk_packages(blocks.__path__, "harness.blocks.")
    modules = [module for each in found_in if hasattr(module := importlib.import_module(each.name), "convolve_each")]
    assert len(modules) > len(DYNAMIC) / 2
    for place, batch, size in product(places_of(name), (2, 5), [(7, 9), (1, 2)]):  # on the latter windows are laid out
        block = lived_in(blocks.create(name, *place)).double().train()
        slow = copy.deepcopy(block)
        x = images(block, batch, *size, torch.float64)
        direction = torch.randn_like(copy.deepcopy(block)(x))
        found = with_gradients(block, x, direction)
        with monkeypatch.context() as patch:
            for module in modules:
                patch.setattr(module, "convolve_each", loop)
            close(found, with_gradients(slow, x, direction))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("place", "size", "calls"),
    [
        ((8, 32, 3, 1, 1, 1), (3, 2), "bmm"),  # 6 pixels of 8
        ((8, 32, 3, 1, 1, 1), (3, 3), "convolution"),
        ((8, 32, 3, 2, 1, 1), (4, 7), "bmm"),
        ((8, 32, 5, 1, 1, 2), (4, 2), "bmm"),
        ((8, 32, 3, 1, 2, 1), (2, 2), "convolution"),
        ((8, 4, 1, 1, 1, 1), (6, 5), "bmm"),
        ((8, 32, 1, 2, 1, 1), (4, 4), "bmm"),
        ((8, 4, 1, 2, 1, 1), (9, 9), "convolution"),
    ],
    ids=str,
)
def test_kernels_are_applied_alike_whichever_way_is_quicker(place, size, calls, layout):
    for padding in (0, None, 3):
        spec = ConvSpec(*place) if padding is None else ConvSpec(*place).padded(padding)
        if min(size) + 2 * spec.padding <= spec.dilation * (spec.kernel_size - 1):
            continue  # nothing comes out
        x = torch.randn(3, spec.c_in, *size, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
        shape = spec.c_out, spec.c_in // spec.groups, spec.kernel_size, spec.kernel_size
        weight = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            found = convolve_each(x, weight, spec)
        if padding is None:
            assert [str(op).removeprefix("aten.") for op in counter.get_flop_counts()["Global"]] == [calls]
        wanted = loop(x, weight, spec)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        direction = torch.randn_like(wanted)
        for a, b in zip(*(torch.autograd.grad(y, [x, weight], direction) for y in (found, wanted)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", DYNAMIC)
def test_wide_layers_on_small_maps_export_compile_and_stay_near_float32(name, lived_in):
    """Where windows are laid out: 64 channels, 3x3 pixels."""
    block = lived_in(make(name, 64, 64)).eval()
    x = images(block, 2, 3, 3)
    exported = torch.export.export(block, (x,), dynamic_shapes={"x_NCHW": {0: torch.export.Dim("batch")}})
    many = images(block, 5, 3, 3)
    torch.testing.assert_close(exported.module()(many), block(many), rtol=1e-4, atol=1e-4)
    torch.compiler.reset()
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        found = block(x)
    assert (found.float() - block(x)).norm() <= 0.05 * block(x).norm()


@pytest.mark.parametrize("name", BLOCKS)
def test_odd_and_small_maps_have_the_convolutions_shape(name):
    for place, (rows, columns) in product(places_of(name), [(7, 5), (1, 9), (2, 2), (3, 8)]):
        block = blocks.create(name, *place).eval()
        y = block(images(block, 2, rows, columns))
        stride = block.spec.stride
        assert y.shape == (2, block.spec.c_out, -(-rows // stride), -(-columns // stride)), place
        assert y.isfinite().all()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_batch_of_one_trains_or_is_refused_by_name(name):
    block = make(name, 8, 8).train()
    refusal = None
    try:
        block(images(block, 1, 6, 6)).square().mean().backward()
    except Unsupported as refused:
        refusal = refused
    assert refusal is None or ("batch of" in refusal.problem and refusal.remedy)
    assert block.eval()(images(block, 1, 6, 6)).isfinite().all()


@pytest.mark.parametrize("name", BLOCKS)
def test_bfloat16_stays_near_float32(name, lived_in):
    block = lived_in(make(name, 8, 8)).train()
    x = images(block, 4, 6, 6)
    low = copy.deepcopy(block).bfloat16()
    wanted, found = block(x), low(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).norm() <= 0.1 * wanted.norm()
    found.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in low.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", BLOCKS)
def test_channels_last_maps_and_modules_change_nothing(name, lived_in):
    for place in places_of(name)[:3]:
        block = lived_in(blocks.create(name, *place)).double().train()
        other = copy.deepcopy(block).to(memory_format=torch.channels_last)
        x = images(block, 2, 7, 9, torch.float64)
        direction = torch.randn_like(copy.deepcopy(block)(x))
        wanted = with_gradients(copy.deepcopy(block), x, direction)
        last = x.contiguous(memory_format=torch.channels_last)
        close(with_gradients(block, last, direction), wanted)
        close(with_gradients(other, last, direction), wanted)


def train(block: nn.Module, optimizer: torch.optim.Optimizer, annealing: Annealing, batches: list[Tensor]) -> None:
    for x in batches:
        annealing.step()
        optimizer.zero_grad()
        block(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_training_goes_on_from_its_checkpoint_to_the_bit(name):
    def begun() -> tuple[nn.Module, torch.optim.Optimizer, Annealing]:
        block = make(name, 8, 8).train()
        return block, torch.optim.SGD(block.parameters(), 0.01, momentum=0.9), Annealing(block, steps_per_epoch=1)

    block, optimizer, annealing = begun()
    batches = [images(block, 4, 6, 6) for _ in range(4)]
    train(block, optimizer, annealing, batches[:2])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (block, optimizer, annealing)], file)
    train(block, optimizer, annealing, batches[2:])
    resumed = begun()
    file.seek(0)
    for part, state in zip(resumed, torch.load(file), strict=True):
        part.load_state_dict(state)
    train(*resumed, batches[2:])
    torch.testing.assert_close(resumed[0].state_dict(), block.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", [name for name in BLOCKS if any(isinstance(m, Tempered) for m in make(name).modules())]
)
def test_the_temperature_is_part_of_the_state_and_matters(name, lived_in):
    block = lived_in(make(name, 8, 8)).eval()
    key = next(key for key in block.state_dict() if key.endswith("temperature"))
    module = next(module for module in block.modules() if isinstance(module, Tempered))
    ready = copy.deepcopy(block)
    Annealing(block, steps_per_epoch=100).step()
    assert block.state_dict()[key] == pytest.approx(module.schedule.at(1, 100 * module.schedule.epochs))
    x = images(block, 2, 6, 6)
    assert not torch.allclose(block(x), ready(x))
    ready.load_state_dict(block.state_dict())
    assert torch.equal(block(x), ready(x))
    for dtype in (torch.bfloat16, torch.float64, torch.float32):  # a cast does not round it
        assert block.to(dtype).state_dict()[key] == ready.state_dict()[key]


def test_there_are_dynamic_blocks():
    assert {"condconv", "dyconv", "odconv", "weightnet", "cgc", "kw"} <= set(DYNAMIC)
    assert harness.blocks.create("odconv", 8, 8).fusable() is False
