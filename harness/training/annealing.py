"""Temperatures of dynamic convolutions, stepped by whoever trains."""

from __future__ import annotations

from torch import nn

from harness.blocks.parts.per_sample import Schedule, Tempered
from harness.records import Json
from harness.training.rules import RULES, Rule, TrainingContext


class Annealing:
    """Lowers every temperature of a model batch by batch, each by its block's own schedule.

        annealing = Annealing(model, steps_per_epoch=len(loader), epochs=100)
        for batch in loader:
            annealing.step()            # before the forward pass
            ...

    steps_per_epoch: batches, not optimizer steps. epochs: of this training; the temperatures then fall over the same
    share of it as in the block's paper. None: over as many epochs as there.

    The temperatures themselves are in the model's state dict, and which batch it is in this one's.
    """

    def __init__(self, model: nn.Module, steps_per_epoch: int, epochs: int | None = None) -> None:
        self._tempered = [module for module in model.modules() if isinstance(module, Tempered)]
        self._steps_per_epoch = steps_per_epoch
        self._epochs = epochs
        self._step = 0

    def step(self) -> None:
        """Set the temperatures that the next batch is trained at."""
        self._step += 1
        for module in self._tempered:
            module.set_temperature(module.schedule.at(self._step, self._steps(module.schedule)))

    def _steps(self, schedule: Schedule) -> int:
        epochs = schedule.epochs if self._epochs is None else schedule.epochs / schedule.of * self._epochs
        return max(1, round(epochs * self._steps_per_epoch))

    def state_dict(self) -> dict[str, Json]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Json]) -> None:
        self._step = int(state["step"])


@RULES.register("annealing")
class AnnealingRule(Rule):
    """`Annealing` before every step of a training."""

    def __init__(self, context: TrainingContext) -> None:
        super().__init__(context)
        self._annealing = Annealing(context.model, context.steps_per_epoch, context.epochs)

    def before_step(self) -> None:
        self._annealing.step()
