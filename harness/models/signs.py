"""Which tensors of a running model cannot be negative: what a ReLU gives, and what keeps that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

MAKING = {
    aten.relu, aten.relu_, aten.sigmoid, aten.sigmoid_, aten.hardsigmoid, aten.abs, aten.square, aten.exp,
    aten._softmax, aten.bernoulli, aten.bernoulli_,
}  # fmt: skip
"""Operators whose result is never negative."""

CLIPPING = {aten.hardtanh, aten.hardtanh_, aten.clamp, aten.clamp_, aten.clamp_min, aten.threshold}
"""Those whose second argument is the least there is: ReLU6 is one."""

ARITHMETIC = {aten.add, aten.add_, aten.mul, aten.mul_, aten.div, aten.div_}
"""Those whose result is not negative where neither tensors nor numbers are."""

KEEPING = {
    aten.max_pool2d, aten.max_pool2d_with_indices, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.adaptive_avg_pool2d,
    aten.mean, aten.cat, aten.native_dropout, aten.clone, aten.detach, aten.alias, aten._to_copy, aten.view,
    aten._unsafe_view, aten.reshape, aten.transpose, aten.permute, aten.slice, aten.split, aten.chunk, aten.select,
    aten.expand, aten.upsample_nearest2d, aten.upsample_bilinear2d,
}  # fmt: skip
"""Those whose result is not negative where none of their tensors is; their numbers are sizes and places."""


class Signs:
    """Told of every operator in the order in which they run."""

    def __init__(self) -> None:
        self._known: dict[int, Tensor] = {}  # held, so that no identity is used twice

    def cannot_be_negative(self, tensor: Any) -> bool:
        return self._known.get(id(tensor)) is tensor

    def ran(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """What is known of the result; an operator that works in place may take from what was known."""
        sound = self._sound(func.overloadpacket, args, kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                if sound:
                    self._known[id(tensor)] = tensor
                else:
                    self._known.pop(id(tensor), None)

    def _sound(self, operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if operator in MAKING:
            return True
        if operator in CLIPPING:
            least = args[1] if len(args) > 1 else None
            return isinstance(least, int | float) and least >= 0
        if operator not in ARITHMETIC | KEEPING:
            return False
        leaves = tree_leaves((args, kwargs))
        numbers = [leaf for leaf in leaves if isinstance(leaf, int | float)] if operator in ARITHMETIC else []
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return all(number >= 0 for number in numbers) and all(self.cannot_be_negative(tensor) for tensor in tensors)
