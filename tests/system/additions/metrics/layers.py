"""How many layers with weights a model has: a metric as a newcomer would add it, in one file."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from harness.measuring.metric import metric, one
from harness.measuring.subject import Subject
from harness.quantity import Phrase, Quantity, Theme, Wording
from harness.records import Kind, Reading, TaskKind


@metric(
    "layers",
    TaskKind.CELL,
    Quantity(
        "layers",
        "1",
        Kind.COUNT,
        forms=("train", "fused"),
        what="convolutions and linear layers",
        rank=65,  # before latency
        theme=Theme.RUN,
        phrases=(Phrase(Wording.COUNT, "layers with weights"),),
    ),
)
def layers(subject: Subject) -> Iterable[Reading]:
    """Convolutions and linear layers of each form of the model."""
    for form in subject.forms:
        found = [module for module in subject.model(form).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        yield one("layers", form, "1", len(found))
