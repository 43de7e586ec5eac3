"""The one tracker of live tensor storages, for real and for fake tensors.

It adds up what the operators of a program hand out and what is released again, rounded as CUDA's allocator
rounds. What a kernel needs only inside itself (workspaces) is not a tensor and not seen; nor is what an
allocator keeps in reserve.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GRANULE = 512
"""Bytes that a storage is rounded up to, as c10's CUDACachingAllocator does (kMinBlockSize)."""

DEVICE = torch.ops.prim.device.default

ACTIVATIONS, TEMPORARIES = "activations", "temporaries"
"""What a storage is that nobody registered: kept from one phase for the next, or not."""


@dataclass
class Life:
    """One storage from birth to death, counted in changes of the total; `owner` is a module's name, "" for none."""

    size: int
    born: int
    phase: str
    owner: str
    category: str
    died: int = sys.maxsize


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of live storages while it is entered: `current` and the largest it has been, `peak`.

    Tensors that exist already are made known with `register`. A storage counts once, however many tensors
    share it, from the operator that returned it until it is released. `owner` says whose a new storage is.
    """

    def __init__(self, owner: Callable[[], str] = str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.peak = 0
        self.phases: dict[str, int] = {}
        """The largest `current` of each phase."""
        self._owner = owner
        self._phase = ""
        self._changes = 0
        self._peak_at = 0
        self._live: dict[int, Life] = {}
        self._lives: list[Life] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled; guarding against it costs time at every operator

    def register(self, tensors: Iterable[Tensor], category: str = "", owner: str = "") -> None:
        """Count tensors that no operator will return (parameters, inputs, ...), or say what counted ones are."""
        for tensor in tensors:
            self._see(tensor)
            life = self._live[tensor.untyped_storage()._cdata]
            life.category, life.owner = category or life.category, owner or life.owner

    def enter(self, phase: str) -> None:
        """Begin a phase. What the phase before it brought into being and still keeps are activations."""
        for life in self._live.values():
            if life.category == TEMPORARIES:
                life.category = ACTIVATIONS
        self._phase = phase
        self.phases[phase] = self.current

    def reset_peak(self) -> None:
        """Begin a new peak at what is live now."""
        self.peak, self._peak_at = self.current, self._changes

    def at_peak(self) -> list[Life]:
        """The storages alive when `current` was largest (for the first time); their sizes add up to `peak`."""
        return [life for life in self._lives if life.born <= self._peak_at < life.died]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # autograd asks several times per operator, and the way down is long
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = -(-storage.nbytes() // GRANULE) * GRANULE
        known = self._live.get(key)
        if known is None:
            # the finalizer runs when the storage itself goes: torch keeps its Python object as long as it lives
            weakref.finalize(storage, self._gone, key).atexit = False
            self._bear(key, Life(size, 0, self._phase, self._owner(), TEMPORARIES))
        elif known.size != size:  # after resize_: another storage in the same place
            self._gone(key)
            self._bear(key, Life(size, 0, self._phase, known.owner, known.category))

    def _bear(self, key: int, life: Life) -> None:
        self._changes += 1
        life.born = self._changes
        self._live[key] = life
        self._lives.append(life)
        self.current += life.size
        if self.current > self.peak:
            self.reset_peak()
        if self._phase:
            self.phases[self._phase] = max(self.phases[self._phase], self.current)

    def _gone(self, key: int) -> None:
        self._changes += 1
        life = self._live.pop(key)
        life.died = self._changes
        self.current -= life.size


def by(attribute: str, lives: Iterable[Life]) -> dict[str, int]:
    """Bytes by `category`, `owner` or `phase`, the largest first."""
    total: Counter[str] = Counter()
    for life in lives:
        total[getattr(life, attribute)] += life.size
    return dict(total.most_common())


def live_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of `tensors`, each once, rounded up as the tracker does."""
    tracker = StorageTracker()
    held = list(tensors)
    tracker.register(held)
    return tracker.current
