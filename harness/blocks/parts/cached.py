"""A composed kernel that is kept in eval until a parameter changes.

An online block composes its kernel anew in every training step. In eval, without gradients, the parameters stand
still and so may the kernel. What tells a change: the tensor itself, its version counter (every in-place operation,
optimizer step and `load_state_dict` raises it) and its storage. `parameter.data` leaves no trace in any of these,
so a parameter of a kept kernel becomes `Watched`, which counts every access to `.data` as a change. What remains
unseen is writing through an alias made earlier: a kept `.data`, or a NumPy view.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd.graph import increment_version

Composed = TypeVar("Composed")
"""A kernel, with or without its bias."""

Key = tuple[tuple[Tensor, int, int], ...]


class Watched(nn.Parameter):
    """A parameter whose `.data` counts as a change."""

    @property
    def data(self) -> Tensor:
        increment_version(self)
        value: Tensor = Tensor.data.__get__(self)  # type: ignore[attr-defined]
        return value

    @data.setter
    def data(self, value: Tensor) -> None:
        increment_version(self)
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]


class CachedKernel:
    """One module's composed kernel. It is not part of the module's state: copies and pickles start without it."""

    def __init__(self) -> None:
        self._key: Key | None = None
        self._kernel: Any = None

    def get(self, module: nn.Module, compose: Callable[[], Composed]) -> Composed:
        """What `compose` makes of the module's parameters and buffers: kept from the last call where it may be."""
        if not _still(module):
            self._key = self._kernel = None
            return compose()
        key = _key(module)
        if self._kernel is None or self._key is None or not _same(key, self._key):
            self._kernel = compose()
            self._key = key
        kernel: Composed = self._kernel
        return kernel

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedKernel:
        return CachedKernel()

    def __reduce__(self) -> tuple[type[CachedKernel], tuple[()]]:
        return CachedKernel, ()


def _still(module: nn.Module) -> bool:
    """Whether a kernel may be kept: eval, no gradient wanted, no tracing, tensors with storage and a version."""
    if module.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return not any(
        isinstance(tensor, FakeTensor) or tensor.is_meta or tensor.is_inference() for tensor in _tensors(module)
    )


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _key(module: nn.Module) -> Key:
    for parameter in module.parameters():
        if type(parameter) is nn.Parameter:
            parameter.__class__ = Watched
    return tuple((tensor, tensor._version, tensor.data_ptr()) for tensor in _tensors(module))


def _same(one: Key, other: Key) -> bool:
    return len(one) == len(other) and all(
        a is b and version == before and place == place_before
        for (a, version, place), (b, before, place_before) in zip(one, other, strict=True)
    )
