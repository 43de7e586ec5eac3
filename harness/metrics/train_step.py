"""How long a training step takes: forward, loss, backward, optimizer."""

from __future__ import annotations

from collections.abc import Iterable

from harness.metrics.base import Step, metric
from harness.metrics.subject import Subject, optimizer_options
from harness.records import Kind, Quantity, TaskKind


class Training:
    """A model, its optimizer and one batch; calling it trains once. Nothing in it waits for the device."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.model = subject.model("train")
        self.optimizer = subject.optimizer(self.model)
        self.x, self.target = subject.input(), subject.target()

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.subject.loss(self.model(self.x), self.target).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


@metric("train_step", TaskKind.VISIT, Quantity("train_step", "s", Kind.SAMPLED, what="seconds per training step"))
def train_step(subject: Subject) -> Iterable[Step]:
    """Seconds per training step: forward, loss, backward, optimizer."""
    facts = {"optimizer": optimizer_options(subject.cell)["implementation"]}
    yield Step("train_step", "train", "s", Training(subject), facts)
