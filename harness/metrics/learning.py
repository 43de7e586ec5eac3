"""A short real training on labelled images, and how it ended: as planned, or at a loss that is not a number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.blocks.dyrep import DyRepBlock
from harness.metrics.subject import Subject
from harness.models.annealing import Annealing
from harness.models.dyrep import DyRep, schedule_for
from harness.records import Json

WARMUP_SHARE = 0.1
"""Of the steps; the rate rises linearly over them and falls to zero along a cosine."""


@dataclass(frozen=True)
class Learned:
    """The loss of every step that was made, and the one that ended the training early, if any: infinite or nan."""

    losses: tuple[float, ...]
    end: float | None
    journal: tuple[Json, ...]
    """What DyRep did to the model, event by event."""

    @property
    def diverged_at(self) -> int | None:
        """The step, counted from 1, that was not made because its loss was not a number."""
        return None if self.end is None else len(self.losses) + 1

    @property
    def ending(self) -> dict[str, Json]:
        """Facts about a training that diverged; the loss as text, because JSON has no infinity."""
        return {} if self.end is None else {"diverged_at_step": self.diverged_at, "diverged_loss": str(self.end)}


def learn(
    subject: Subject, model: nn.Module, images_NCHW: Tensor, labels_N: Tensor, epochs: int, batch_size: int
) -> Learned:
    """Train `model` in place with the cell's optimizer. A model with DyRep's blocks grows between epochs.

    The order of the images depends on the seed alone, so variants see the same. A step whose loss is not finite is
    not made, and the last one: nothing is learned from then on.
    """
    course = _Course(subject, model, images_NCHW, labels_N, epochs, batch_size)
    losses: list[float] = []
    for loss in course:
        if not math.isfinite(loss):
            return Learned(tuple(losses), loss, course.journal)
        losses.append(loss)
    return Learned(tuple(losses), None, course.journal)


class _Course:
    """The steps of a training, each made as it is iterated over; gives the losses."""

    def __init__(
        self, subject: Subject, model: nn.Module, images_NCHW: Tensor, labels_N: Tensor, epochs: int, batch_size: int
    ) -> None:
        self.subject, self.model, self.images, self.labels = subject, model, images_NCHW, labels_N
        self.epochs, self.batch_size = epochs, batch_size
        self.steps_per_epoch = max(1, len(labels_N) // batch_size)
        self.optimizer = subject.optimizer(model)
        total = epochs * self.steps_per_epoch
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: _rate(step, total))
        self.annealing = Annealing(model, self.steps_per_epoch, epochs)
        self.dyrep: DyRep | None = None
        block = next((module for module in model.modules() if isinstance(module, DyRepBlock)), None)
        if block is not None:
            schedule = schedule_for(epochs)
            self.dyrep = DyRep(model, self.optimizer, *schedule, score=block.score, seed=subject.seed)

    @property
    def journal(self) -> tuple[Json, ...]:
        return tuple(self.dyrep.journal) if self.dyrep else ()

    def __iter__(self) -> Iterator[float]:
        order = torch.Generator().manual_seed(self.subject.seed)
        for epoch in range(self.epochs):
            shuffled = torch.randperm(len(self.labels), generator=order).to(self.labels.device)
            batches = torch.split(shuffled[: self.steps_per_epoch * self.batch_size], self.batch_size)
            for chosen in batches:
                yield self._step(chosen)
            if self.dyrep:
                with self.subject.autocast():
                    self.dyrep.after_epoch(epoch, (self.images[chosen] for chosen in batches))

    def _step(self, chosen: Tensor) -> float:
        """The loss on these images, and a step down it where it is finite."""
        self.annealing.step()
        self.optimizer.zero_grad(set_to_none=True)
        with self.subject.autocast():
            loss = self.subject.loss(self.model(self.images[chosen]), self.labels[chosen])
            objective = self.subject.regularized(loss, self.model)
        value = loss.item()
        if math.isfinite(value):
            objective.backward()  # type: ignore[no-untyped-call]
            if self.dyrep:
                self.dyrep.record()
            self.optimizer.step()
            self.schedule.step()
        return value


def _rate(step: int, total: int) -> float:
    warmup = max(1, int(total * WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
