"""Calls that several metrics make: a forward pass for its output alone, and what comes after a first call."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from harness.devices import Clock
from harness.measuring.subject import Subject
from harness.records import Json

LATER = 3
"""Steady steps beside a first one; what they tell is its order of magnitude, not a comparison."""


def forward_pass(subject: Subject, model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """A call that runs `model` on `x` for its output alone, under the cell's autocast."""

    @torch.inference_mode()
    def run() -> torch.Tensor:
        with subject.autocast():
            output: torch.Tensor = model(x)
        return output

    return run


def steady(clock: Clock, step: Callable[[], object]) -> dict[str, Json]:
    """Facts about calls after the first: `second`, then `later` ones and their median, `steady`; seconds."""
    second = clock.time(step)
    later = [clock.time(step) for _ in range(LATER)]
    return {"second": second, "later": later, "steady": median(later)}
