"""What a training's first step costs and later ones no more: kernels chosen, memory asked for, state made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

from harness.devices import Clock
from harness.metrics.base import metric, one
from harness.metrics.subject import Subject, optimizer_options
from harness.metrics.train_step import Training
from harness.records import Json, Kind, Quantity, Reading, TaskKind

LATER = 3
"""Steady steps beside a first one; what they tell is its order of magnitude, not a comparison."""


@metric(
    "first_step",
    TaskKind.FIRST,
    Quantity("first_step", "s", Kind.SAMPLED, what="seconds of a fresh process's very first training step"),
)
def first_step(subject: Subject) -> Iterable[Reading]:
    """Seconds of the first training step of a fresh process, its model and batch already on the device.

    Building them is not in it, whatever the first operators bring with them is. Later steps stand beside it as
    facts: `steady`, their median, from the third step on; the second may still choose and allocate.
    """
    step = Training.of(subject)
    clock = Clock(subject.device)
    subject.device.synchronize()  # the batch's way to the device is not the step's
    seconds = clock.time(step)
    facts = {"optimizer": optimizer_options(subject.cell)["implementation"], **steady(clock, step)}
    yield one("first_step", "train", "s", seconds, **facts)


def steady(clock: Clock, step: Callable[[], object]) -> dict[str, Json]:
    """Facts about calls after the first: `second`, then `later` ones and their median, `steady`; seconds."""
    second = clock.time(step)
    later = [clock.time(step) for _ in range(LATER)]
    return {"second": second, "later": later, "steady": median(later)}
