"""One training step of a cell, ready to be called: what is timed, tracked, captured and predicted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from harness.measuring.subject import Subject
from harness.memory.steps import BACKWARD, FORWARD, OPTIMIZER, Enter


@dataclass
class Training:
    """A model, its optimizer and one batch; calling it trains once. Nothing in it waits for the device.

    `model`, `x` and `target` may be fake tensors.
    """

    subject: Subject
    model: nn.Module
    optimizer: Optimizer
    x: Tensor
    target: Tensor

    @classmethod
    def of(cls, subject: Subject) -> Training:
        """The cell's own model and batch on its device."""
        model = subject.model("train")
        return cls(subject, model, subject.optimizer(model), subject.input(), subject.target())

    def __call__(self, enter: Enter = lambda phase: None) -> None:
        """One step; `enter` is told each phase as it begins."""
        self.optimizer.zero_grad(set_to_none=True)
        enter(FORWARD)
        loss = self._loss()
        enter(BACKWARD)
        torch.autograd.backward(loss)
        enter(OPTIMIZER)
        self.optimizer.step()

    def state(self) -> list[Tensor]:
        """What a step changes in place: parameters, buffers, and what the optimizer keeps of them."""
        kept = [tensor for slots in self.optimizer.state.values() for tensor in slots.values()]
        return [*self.model.parameters(), *self.model.buffers(), *(one for one in kept if isinstance(one, Tensor))]

    def _loss(self) -> Tensor:
        # by the tensors' own device: a prediction for another one runs on the CPU's operators
        with self.subject.autocast(self.x.device.type):
            loss = self.subject.loss(self.model(self.x), self.target)
            return self.subject.regularized(loss, self.model)
