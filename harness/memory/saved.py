"""Bytes that a training forward pass keeps for its backward pass, and who keeps them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.memory.modules import running_module


@dataclass(frozen=True)
class Saved:
    """One storage kept for backward: its bytes, and the names of the innermost modules that keep it."""

    size: int
    owners: frozenset[str]


def saved_bytes(module: nn.Module, *inputs: Tensor) -> int:
    """Bytes kept for backward by one forward of `module` on `inputs`, in train mode; see `saved_storages`."""
    return sum(saved.size for saved in saved_storages(module, *inputs))


def saved_storages(module: nn.Module, *inputs: Tensor) -> list[Saved]:
    """What one forward of `module` on `inputs`, in train mode, keeps for backward, each storage once.

    Every tensor handed to autograd's saved-tensor hooks counts with its whole storage.
    Storages of parameters and buffers do not count: they live anyway. The input counts when it is kept.
    Works for fake tensors too. Batch-norm statistics move as in any training forward; the mode is put back.
    What a checkpoint holds on to is not handed to the hooks, and not seen.
    """
    lives_anyway = _storages((*module.parameters(), *module.buffers()))
    packed: weakref.WeakSet[_Kept] = weakref.WeakSet()
    was_training = {child: child.training for child in module.modules()}
    module.train()
    try:
        with running_module(module) as owner:

            def pack(tensor: Tensor) -> _Kept:
                kept = _Kept(tensor, owner())
                packed.add(kept)
                return kept

            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
                outputs = module(*inputs)
        # What the graph has let go of by now (a detached side calculation) is not kept for backward.
        sizes, owners = {}, dict[int, set[str]]()
        for kept in packed:
            storage = kept.tensor.untyped_storage()
            if storage._cdata not in lives_anyway:
                sizes[storage._cdata] = storage.nbytes()
                owners.setdefault(storage._cdata, set()).add(kept.owner)
            # A saved output knows its own node, which holds what stands in its place: nobody collects such a ring.
            kept.release()
        del outputs
    finally:
        for child, training in was_training.items():
            child.training = training
    return [Saved(size, frozenset(owners[storage])) for storage, size in sizes.items()]


class _Kept:
    """What autograd holds in a saved tensor's place: it lives exactly as long as the graph needs the tensor."""

    def __init__(self, tensor: Tensor, owner: str) -> None:
        self.tensor = tensor
        self.owner = owner

    def release(self) -> None:
        """Let go of the tensor; the graph cannot be walked backward any more."""
        del self.tensor


def _storages(tensors: Iterable[Tensor]) -> frozenset[int]:
    return frozenset(tensor.untyped_storage()._cdata for tensor in tensors)
