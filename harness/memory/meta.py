"""Models without storage: built or copied on torch's meta device, and turned into fake tensors.

Building directly under FakeTensorMode raises for several networks (their constructors look at values);
building on meta and converting afterwards works for all that were tried.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

M = TypeVar("M", bound=nn.Module)


def build_on_meta(build: Callable[[], M]) -> M:
    """What `build` makes, with parameters and buffers that have shapes but no storage."""
    with torch.device("meta"):
        return build()


def meta_copy(model: M) -> M:
    """A deep copy whose parameters and buffers are on meta; no value is copied, the original stays as it is."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return deepcopy(model, memo)


def to_fake(model: M, mode: FakeTensorMode, device: torch.device | str = "cpu") -> M:
    """`model` itself, each parameter and buffer replaced by an empty fake tensor of its shape, stride and dtype.

    A tensor that is registered in several places stays one tensor.
    """
    fakes: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in fakes:
            with mode:
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            is_parameter = isinstance(tensor, nn.Parameter)
            fakes[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return fakes[id(tensor)]

    # the originals stay alive until the end: an id must not be given to a new tensor meanwhile
    originals = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = fake(tensor)  # type: ignore[assignment]
    del originals
    return model
