"""What fills an optimizer's groups again when its model has got other parameters: groups, rates and decays stay.

Schedulers keep one base rate per group, so no group may come or go; and what `torch.optim` saves is told apart by
position, so parameters stand in the order of their names, whatever order the model has changed in.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from harness.errors import HarnessError

GroupOf = Callable[[str, nn.Parameter], int]
"""The index of the group that a parameter of this name belongs to."""


class Regrouping:
    """The rule by which an optimizer's parameters are grouped, and applying it to the model as it is now.

    group_of: the rule. By default a group is for all parameters, for those of one dimension and biases, or for the
        rest: which is read off the optimizer.

    Parameters that the optimizer does not have at the start (frozen ones) stay outside.
    Raises HarnessError where the rule does not give the groups that the optimizer has.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, group_of: GroupOf | None = None) -> None:
        self._optimizer = optimizer
        index = {id(parameter): i for i, group in enumerate(optimizer.param_groups) for parameter in group["params"]}
        own = dict(model.named_parameters())
        if set(index) - {id(parameter) for parameter in own.values()}:
            raise HarnessError("the optimizer has parameters that are not the model's", remedy="give it one of its own")
        self._outside = {name for name, parameter in own.items() if id(parameter) not in index}
        grouped = {name: index[id(parameter)] for name, parameter in own.items() if id(parameter) in index}
        kinds = {_decays(name, own[name]): group for name, group in grouped.items()}
        self._group_of = group_of or (lambda name, parameter: kinds.get(_decays(name, parameter), 0))
        if any(self._group_of(name, own[name]) != group for name, group in grouped.items()):
            raise HarnessError(
                "the optimizer's groups follow another rule than 1-d parameters and biases in one, the rest in another",
                remedy="use a single group, these two, or say the rule: group_of=lambda name, parameter: 0",
            )
        self.apply(model)

    def apply(self, model: nn.Module) -> None:
        """The model's parameters into the groups; the state of those that are gone is deleted."""
        groups = self._optimizer.param_groups
        filled: list[dict[str, nn.Parameter]] = [{} for _ in groups]
        for name, parameter in sorted(model.named_parameters(), key=lambda named: named[0]):
            if name not in self._outside:
                filled[self._group_of(name, parameter)][name] = parameter
        for group, members in zip(groups, filled, strict=True):
            group["params"] = list(members.values())
            if "param_names" in group:  # an optimizer made from named parameters
                group["param_names"] = list(members)
        there = {id(parameter) for members in filled for parameter in members.values()}
        for gone in [known for known in self._optimizer.state if id(known) not in there]:
            del self._optimizer.state[gone]


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is usual for it: not in one dimension, nor for biases (timm's rule)."""
    return parameter.ndim > 1 and not name.endswith(".bias")
