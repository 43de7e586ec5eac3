"""How long a forward pass takes, as trained and as fused."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from harness.metrics.base import Step, metric
from harness.metrics.subject import Subject
from harness.records import Kind, Quantity, TaskKind


@metric(
    "latency",
    TaskKind.VISIT,
    Quantity("latency", "s", Kind.SAMPLED, forms=("train", "fused"), what="seconds per forward pass in eval mode"),
)
def latency(subject: Subject) -> Iterable[Step]:
    """Seconds per forward pass in eval mode, of the train form and of the fused form."""
    x = subject.input()
    trained = subject.model("train").eval()
    yield Step("latency", "train", "s", _forward(subject, trained, x))
    yield Step("latency", "fused", "s", _forward(subject, subject.model("fused"), x))


def _forward(subject: Subject, model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> torch.Tensor:
        with subject.autocast():
            output: torch.Tensor = model(x)
        return output

    return run
