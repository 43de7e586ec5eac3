"""How long a training step takes: forward, loss, backward, optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from harness.memory.steps import BACKWARD, FORWARD, OPTIMIZER, Enter
from harness.metrics.base import Step, metric
from harness.metrics.captured import captured
from harness.metrics.subject import Subject, optimizer_options
from harness.records import Json, Kind, Quantity, TaskKind

OPTIONS: dict[str, Json] = {
    "graph": {
        "type": "boolean",
        "default": False,
        "what": "capture the step once and replay it: without what the host does per launch (cuda, xpu)",
    },
}


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
        loss.backward()  # type: ignore[no-untyped-call]
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


@metric(
    "train_step",
    TaskKind.VISIT,
    Quantity("train_step", "s", Kind.SAMPLED, what="seconds per training step"),
    options=OPTIONS,
)
def train_step(subject: Subject, graph: bool) -> Iterable[Step]:
    """Seconds per training step: forward, loss, backward, optimizer.

    On an accelerator many short operations may take longer to launch than to do; `graph` takes the launching away.
    Raises Unsupported for a graph where the device has none, or the step cannot be captured.
    """
    facts: dict[str, Json] = {"optimizer": optimizer_options(subject.cell)["implementation"]}
    step = Training.of(subject)
    run: Callable[[], object] = step
    if graph:
        facts["graph"] = True
        run = captured(subject.device, step, step.x, step.state)
    yield Step("train_step", "train", "s", run, facts)
