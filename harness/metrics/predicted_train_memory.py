"""Predicted peak memory of a training step, without data and without the device."""

from __future__ import annotations

from collections.abc import Iterable

from harness.measuring.metric import metric, one
from harness.measuring.predicted_step import assumptions, breakdown, predict
from harness.measuring.subject import Subject, optimizer_options
from harness.quantity import Parts, Phrase, Quantity, Wording
from harness.records import Kind, Reading, TaskKind

MEASURED = ("train_memory",)
"""What is told instead of the prediction where both are there."""


@metric(
    "predicted_train_memory",
    TaskKind.CELL,
    Quantity(
        "predicted_train_memory",
        "B",
        Kind.COUNT,
        what="predicted peak of live tensors over a training step",
        rank=40,
        phrases=(Phrase(Wording.BYTES, "the predicted peak of training", unless=MEASURED),),
        parts=(
            Parts("phases", "The peak of training by phase (predicted)", unless=MEASURED),
            Parts("categories", "What the peak of training is made of (predicted)", unless=MEASURED),
        ),
    ),
    on_device=False,
)
def predicted_train_memory(subject: Subject) -> Iterable[Reading]:
    """Predicted peak bytes of live tensors over a steady-state training step, by running it on fake tensors.

    What train_memory counts on the CPU, to the byte. The facts say what is assumed, and split the peak by category
    and by module, and the step by phase.
    """
    implementation = optimizer_options(subject.cell)["implementation"]
    step = predict(subject)
    facts = {"optimizer": implementation, "assumptions": assumptions(subject), **breakdown(step)}
    yield one("predicted_train_memory", "train", "B", step.peak, **facts)
