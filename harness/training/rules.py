"""What blocks ask of a training beside steps: temperatures that fall, branches that grow.

A module says by `training_rules`, names of this registry, what its paper does while it trains; whoever trains follows
the rules of all modules of a model. A rule is made once a training and called around every step and epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.records import Json
from harness.registry import Registry


@dataclass(frozen=True)
class TrainingContext:
    """A training as its rules see it. `autocast`: what a forward pass of it runs in."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps_per_epoch: int
    epochs: int
    seed: int
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext


class Rule:
    """Does nothing; a subclass overrides what it is for."""

    journal: list[Json]
    """What the rule did to the model, event by event, as plain JSON."""

    def __init__(self, context: TrainingContext) -> None:
        self.context = context
        self.journal = []

    def before_step(self) -> None:
        """In front of every forward pass."""

    def after_backward(self) -> None:
        """With the gradients of a step, before the optimizer uses them."""

    def after_epoch(self, epoch: int, images: Iterable[Tensor]) -> None:
        """Behind the last step of epoch `epoch` (from 0), with its batches of images once more."""


RULES: Registry[Callable[[TrainingContext], Rule]] = Registry("training rule")


def rules_for(context: TrainingContext) -> dict[str, Rule]:
    """The rules that the modules of a model ask for, each once, in the order in which they are first asked for."""
    asked = [name for module in context.model.modules() for name in getattr(module, "training_rules", ())]
    return {name: RULES[name](context) for name in dict.fromkeys(asked)}
