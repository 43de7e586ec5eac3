"""A training step of a cell without data and without its device: the same step on fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from harness.measuring.subject import FORMATS, Subject, optimizer_options
from harness.measuring.training_step import Training
from harness.memory import StepBytes, build_on_meta, fake_tensors, peak_step_bytes, pretend_first_step, to_fake
from harness.records import Json

LARGEST_HOLDERS = 10
"""Modules named in a reading; all others are in the sums."""


class Prediction:
    """A cell's training step on fake tensors, for any batch size. Made by `predicting`."""

    def __init__(self, subject: Subject, training: Training) -> None:
        self.subject = subject
        self._training = training
        self._started = False

    def at(self, batch: int | None = None) -> StepBytes:
        """Bytes over a steady-state step with `batch` images, by default the cell's."""
        training = self._training
        training.x = _images(self.subject, batch)
        training.target = torch.zeros(len(training.x), dtype=torch.int64)
        found = self._steady(lambda: None if self._started else pretend_first_step(training.model, training.optimizer))
        if any(parameter.requires_grad and parameter.grad is None for parameter in training.model.parameters()):
            # a parameter that the step leaves alone has no gradient and no momentum: begin again with a real step
            training.model.zero_grad(set_to_none=True)
            training.optimizer = self.subject.optimizer(training.model)
            found = self._steady(training)
        self._started = True
        return found

    def _steady(self, first: Callable[[], object]) -> StepBytes:
        training = self._training
        return peak_step_bytes(training.model, training.optimizer, training, [training.x, training.target], first)


@contextmanager
def predicting(subject: Subject) -> Iterator[Prediction]:
    """A cell ready to be predicted; tensors made inside are fake.

    Raises Unsupported, naming the operator, for a model that cannot run without values.
    """
    bare = build_on_meta(subject.bare_model).to(subject.dtype)
    bare.to(memory_format=FORMATS[subject.cell.memory_format]).train()
    with fake_tensors() as mode:
        model = to_fake(bare, mode)
        yield Prediction(subject, Training(subject, model, subject.optimizer(model), _images(subject), torch.zeros(0)))


def predict(subject: Subject, batch: int | None = None) -> StepBytes:
    """Bytes over one steady-state training step of the cell; see `predicting`."""
    with predicting(subject) as prediction:
        return prediction.at(batch)


def _images(subject: Subject, batch: int | None = None) -> torch.Tensor:
    memory_format = FORMATS[subject.cell.memory_format]
    return torch.empty(subject.input_shape(batch), dtype=subject.dtype, memory_format=memory_format)


def assumptions(subject: Subject) -> list[str]:
    """What a prediction takes for granted, in words."""
    cell, options = subject.cell, optimizer_options(subject.cell)
    taken = [
        f"the CPU's operators (torch {torch.__version__})",
        f"optimizer {cell.optimizer.name}, implementation {options['implementation']}",
        "steady state: gradients and optimizer state exist",
        "every storage once, rounded up to 512 bytes",
        "no workspaces inside operators, no allocator reserve, no fragmentation, no device context",
    ]
    if not subject.device.is_host:
        taken.append(f"{cell.device.name} may choose other operators")
    if cell.dtype.startswith("amp_"):
        taken.append("autocast by the CPU's lists")
    return taken


def breakdown(step: StepBytes) -> dict[str, Json]:
    """The facts of a reading of training memory, bytes: by phase, by category and by module at the peak."""
    modules = [(name, size) for name, size in step.owners.items() if name][:LARGEST_HOLDERS]
    return {
        "before_step": step.before,
        "peak_in": step.at,
        "phases": dict(step.phases),
        "categories": dict(step.categories),
        "modules": dict(modules),
    }
