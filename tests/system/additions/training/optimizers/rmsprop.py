"""rmsprop: the gradient divided by a running mean of its own size (Hinton, Coursera lecture 6e, 2012)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from harness.training.optimizers.base import OPTIMIZERS, OptimizerFactory


@OPTIMIZERS.register("rmsprop")
@dataclass(frozen=True, kw_only=True)
class RMSprop(OptimizerFactory):
    """The gradient divided by a running mean of its size."""

    lr: Annotated[float, "the highest learning rate"] = 1e-2
    alpha: Annotated[float, "share of the running mean that is kept"] = 0.99
    centered: Annotated[bool, "divide by the deviation instead"] = False
    implementation: Annotated[Literal["single", "foreach"] | None, "torch has no fused one"] = None

    def create(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(
            model.parameters(), lr=self.lr, alpha=self.alpha, centered=self.centered, foreach=self.foreach
        )
