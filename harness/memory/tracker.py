"""The one tracker of live tensor storages, for real and for fake tensors.

It adds up what the operators of a program hand out and what is released again, rounded as CUDA's allocator
rounds. What a kernel needs only inside itself (workspaces) is not a tensor and not seen; nor is what an
allocator keeps in reserve.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GRANULE = 512
"""Bytes that a storage is rounded up to, as c10's CUDACachingAllocator does (kMinBlockSize)."""


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live storages while it is entered: `current` and the largest it has been, `peak`.

    Tensors that exist already are made known with `register`. A storage counts once, however many tensors
    share it, from the operator that returned it until it is released.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def register(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that no operator will return: parameters, gradients, optimizer state, inputs."""
        for tensor in tensors:
            self._see(tensor)

    def reset_peak(self) -> None:
        """Begin a new peak at what is live now."""
        self.peak = self.current

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = -(-storage.nbytes() // GRANULE) * GRANULE
        if key not in self._sizes:
            # the finalizer runs when the storage itself goes: torch keeps its Python object as long as it lives
            weakref.finalize(storage, self._gone, key).atexit = False
        self._change(key, size)

    def _change(self, key: int, size: int) -> None:
        self.current += size - self._sizes.get(key, 0)  # differs from 0 for a known storage after resize_
        self._sizes[key] = size
        self.peak = max(self.peak, self.current)

    def _gone(self, key: int) -> None:
        self.current -= self._sizes.pop(key)


def live_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of `tensors`, each once, rounded up as the tracker does."""
    tracker = StorageTracker()
    held = list(tensors)
    tracker.register(held)
    return tracker.current
