"""In eval an online block composes its kernel once, and again after any change of a parameter."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from block_places import make
from torch import Tensor, nn

from harness import blocks
from harness.blocks import BLOCKS, Block
from harness.blocks.parts.cached import CachedKernel

ONLINE = [
    name for name in BLOCKS if "online" in blocks.declaration(name)["evaluations"] and BLOCKS[name].family != "plain"
]
"""A plain convolution has nothing to compose."""


@pytest.fixture
def composed(monkeypatch) -> list[nn.Module]:
    """The modules whose kernel was composed, in order."""
    seen: list[nn.Module] = []
    real = CachedKernel.get

    def counting(self: CachedKernel, module: nn.Module, compose: Callable[[], Tensor]) -> Tensor:
        def counted() -> Tensor:
            seen.append(module)
            return compose()

        return real(self, module, counted)

    monkeypatch.setattr(CachedKernel, "get", counting)
    return seen


def online(name: str) -> Block:
    return make(name, 4, 4, reparam="online")


def anew(block: Block, x: Tensor) -> Tensor:
    """What a copy without a kept kernel says."""
    return copy.deepcopy(block)(x)


@pytest.mark.parametrize("name", ONLINE)
@torch.no_grad()
def test_the_kernel_is_composed_once_in_eval(name, composed, lived_in):
    block, x = lived_in(online(name)).eval(), torch.randn(2, 4, 6, 6)
    first = block(x)
    assert (once := len(composed)) > 0
    for _ in range(3):
        assert torch.equal(block(x), first)
    assert len(composed) == once
    block.train()(x)
    assert len(composed) > once


def step(block: Block) -> None:
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    with torch.enable_grad():
        block(torch.randn(2, 4, 6, 6)).square().sum().backward()
    optimizer.step()


def grow(tensor: Tensor) -> None:
    tensor.mul_(1.5).add_(0.1)


CHANGES: dict[str, Callable[[Block], object]] = {
    "in place": lambda block: [grow(p) for p in block.parameters()],
    "a part of one": lambda block: next(block.parameters())[:1].add_(1),
    "an optimizer's step": step,
    "load_state_dict": lambda block: block.load_state_dict({k: v + 0.3 for k, v in block.state_dict().items()}),
    "through state_dict": lambda block: [grow(v) for v in block.state_dict().values() if v.is_floating_point()],
    ".data in place": lambda block: [grow(p.data) for p in block.parameters()],
    ".data set": lambda block: [setattr(p, "data", p.detach() * 1.5 + 0.1) for p in block.parameters()],
    "parameters replaced": lambda block: [
        setattr(m, key, nn.Parameter(p.detach() * 1.5 + 0.1))
        for m in block.modules()
        for key, p in list(m._parameters.items())
        if p is not None
    ],
    "initialised": lambda block: [nn.init.normal_(p) for p in block.parameters()],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ONLINE)
def test_any_change_of_a_parameter_is_seen(name, change, lived_in):
    block, x = lived_in(online(name)).eval(), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        before = block(x)
        CHANGES[change](block)
        after = block.eval()(x)
    with torch.no_grad():
        assert not torch.allclose(after, before, atol=1e-3)
        assert torch.equal(after, anew(block, x))


@pytest.mark.parametrize("name", ONLINE)
def test_each_parameter_alone_is_watched(name, lived_in):
    block, x = lived_in(online(name)).eval(), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        for label, parameter in block.named_parameters():
            block(x)
            parameter.data.add_(0.5)
            assert torch.equal(block(x), anew(block, x)), label


@pytest.mark.parametrize("name", ONLINE)
@torch.no_grad()
def test_another_dtype_and_back(name, lived_in):
    block, x = lived_in(online(name)).eval(), torch.randn(2, 4, 6, 6)
    wanted = block(x)
    assert block.double()(x.double()).dtype == torch.float64
    assert torch.allclose(block.float()(x), wanted, atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(block(x), wanted, atol=1e-5)
    grow(next(block.parameters()))
    assert torch.equal(block(x), anew(block, x))


@pytest.mark.parametrize("name", ONLINE)
def test_gradients_still_flow_in_eval(name, lived_in):
    block, x = lived_in(online(name)).eval(), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        block(x)
    block(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


@pytest.mark.parametrize("name", ONLINE)
@torch.no_grad()
def test_a_kept_kernel_is_no_part_of_the_state(name, lived_in):
    block, x = lived_in(online(name)).eval(), torch.randn(2, 4, 6, 6)
    keys = list(block.state_dict())
    wanted = block(x)
    assert list(block.state_dict()) == keys
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        grow(next(twin.parameters()))
        assert torch.equal(twin(x), anew(twin, x))
        assert torch.equal(block(x), wanted)


@torch.no_grad()
def test_an_in_place_change_of_parameters_without_a_version_is_seen():
    """Made in inference mode, a tensor counts no versions: nothing is kept."""
    with torch.inference_mode():
        block = online("orepa").eval()
        x = torch.randn(2, 4, 6, 6)
        before = block(x)
        grow(block.branches.origin)
        assert not torch.allclose(block(x), before)
