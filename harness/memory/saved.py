"""Bytes that a training forward pass keeps for its backward pass."""

from __future__ import annotations

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
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in lives_anyway:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    was_training = {child: child.training for child in module.modules()}
    module.train()
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = module(*inputs)  # held: the graph keeps the storages alive, so no identity is used twice
        del outputs
    finally:
        for child, training in was_training.items():
            child.training = training
    return sum(kept.values())


def _storages(tensors: Iterable[Tensor]) -> frozenset[int]:
    return frozenset(tensor.untyped_storage()._cdata for tensor in tensors)
