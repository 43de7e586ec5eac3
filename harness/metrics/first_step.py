"""First step of a training: what later ones cost no more, as kernels chosen, memory asked for, state made."""

from __future__ import annotations

from collections.abc import Iterable

from harness.devices import Clock
from harness.measuring.calls import steady
from harness.measuring.metric import metric, one
from harness.measuring.subject import Subject, optimizer_options
from harness.measuring.training_step import Training
from harness.quantity import Quantity
from harness.records import Kind, Reading, TaskKind


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
