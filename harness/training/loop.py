"""A short real training on labelled images, and how it ended: as planned, or at a loss that is not a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.records import Json
from harness.training.rules import TrainingContext, rules_for
from harness.training.schedules import warmup_and_cosine


@dataclass(frozen=True)
class Learned:
    """The loss of every step that was made, and the one that ended the training early, if any: infinite or nan."""

    losses: tuple[float, ...]
    end: float | None
    journals: dict[str, list[Json]]
    """What rules did to the model, event by event, by the rule's name; rules without a journal are left out."""

    @property
    def diverged_at(self) -> int | None:
        """The step, counted from 1, that was not made because its loss was not a number."""
        return None if self.end is None else len(self.losses) + 1

    @property
    def ending(self) -> dict[str, Json]:
        """Facts about a training that diverged; the loss as text, because JSON has no infinity."""
        return {} if self.end is None else {"diverged_at_step": self.diverged_at, "diverged_loss": str(self.end)}


@dataclass(frozen=True)
class Objective:
    """What a training minimises: `loss` of outputs and labels, and what `regularized` makes of it; under `autocast`."""

    loss: Callable[[Tensor, Tensor], Tensor]
    regularized: Callable[[Tensor, nn.Module], Tensor] = lambda loss, model: loss
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext


def learn(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    images_NCHW: Tensor,
    labels_N: Tensor,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
) -> Learned:
    """Train `model` in place; the rules that its blocks ask for (rules.py) are followed.

    The order of the images depends on the seed alone, so variants see the same. A step whose loss is not finite is
    not made, and the last one: nothing is learned from then on.
    """
    steps_per_epoch = max(1, len(labels_N) // batch_size)
    total = epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_and_cosine(step, total))
    context = TrainingContext(model, optimizer, steps_per_epoch, epochs, seed, objective.autocast)
    steps = _Steps(context, objective, schedule, images_NCHW, labels_N, batch_size)
    losses: list[float] = []
    for loss in steps:
        if not math.isfinite(loss):
            return Learned(tuple(losses), loss, steps.journals)
        losses.append(loss)
    return Learned(tuple(losses), None, steps.journals)


class _Steps:
    """The steps of a training, each made as it is iterated over; gives the losses."""

    def __init__(
        self,
        context: TrainingContext,
        objective: Objective,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        images_NCHW: Tensor,
        labels_N: Tensor,
        batch_size: int,
    ) -> None:
        self.context, self.objective, self.schedule = context, objective, schedule
        self.images, self.labels, self.batch_size = images_NCHW, labels_N, batch_size
        self.rules = rules_for(context)

    @property
    def journals(self) -> dict[str, list[Json]]:
        return {name: list(rule.journal) for name, rule in self.rules.items() if rule.journal}

    def __iter__(self) -> Iterator[float]:
        order = torch.Generator().manual_seed(self.context.seed)
        for epoch in range(self.context.epochs):
            shuffled = torch.randperm(len(self.labels), generator=order).to(self.labels.device)
            batches = torch.split(shuffled[: self.context.steps_per_epoch * self.batch_size], self.batch_size)
            for chosen in batches:
                yield self._step(chosen)
            for rule in self.rules.values():
                rule.after_epoch(epoch, (self.images[chosen] for chosen in batches))

    def _step(self, chosen: Tensor) -> float:
        """The loss on these images, and a step down it where it is finite."""
        model, optimizer = self.context.model, self.context.optimizer
        for rule in self.rules.values():
            rule.before_step()
        optimizer.zero_grad(set_to_none=True)
        with self.objective.autocast():
            loss = self.objective.loss(model(self.images[chosen]), self.labels[chosen])
            minimised = self.objective.regularized(loss, model)
        value = loss.item()
        if math.isfinite(value):
            torch.autograd.backward(minimised)
            for rule in self.rules.values():
                rule.after_backward()
            optimizer.step()
            self.schedule.step()
        return value
