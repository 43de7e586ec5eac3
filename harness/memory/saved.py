"""Bytes that a training forward pass keeps for its backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def saved_bytes(module: nn.Module, *inputs: Tensor) -> int:
    """Bytes kept for backward by one forward of `module` on `inputs`, in train mode.

    Every tensor handed to autograd's saved-tensor hooks counts with its whole storage, each storage once.
    Storages of parameters and buffers do not count: they live anyway. The input counts when it is kept.
    Works for fake tensors too. Batch-norm statistics move as in any training forward; the mode is put back.
    """
    lives_anyway = _storages((*module.parameters(), *module.buffers()))
    packed: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        packed.add(kept)
        return kept

    was_training = {child: child.training for child in module.modules()}
    module.train()
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            outputs = module(*inputs)
        # What the graph has let go of by now (a detached side calculation) is not kept for backward.
        storages = {kept.tensor.untyped_storage()._cdata: kept.tensor.untyped_storage().nbytes() for kept in packed}
        del outputs
    finally:
        for child, training in was_training.items():
            child.training = training
    return sum(size for storage, size in storages.items() if storage not in lives_anyway)


class _Kept:
    """What autograd holds in a saved tensor's place: it lives exactly as long as the graph needs the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def _storages(tensors: Iterable[Tensor]) -> frozenset[int]:
    return frozenset(tensor.untyped_storage()._cdata for tensor in tensors)
