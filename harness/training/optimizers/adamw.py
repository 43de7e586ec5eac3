"""adamw: Adam with decoupled weight decay.

Paper: Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019, arXiv:1711.05101.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from harness.training.optimizers.base import OPTIMIZERS, OptimizerFactory


@OPTIMIZERS.register("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW(OptimizerFactory):
    """Adam with decoupled weight decay."""

    lr: Annotated[float, "the highest learning rate"] = 1e-3
    weight_decay: Annotated[float, "share of a weight that a step at rate 1 takes away"] = 0.01

    def create(self, model: nn.Module) -> torch.optim.Optimizer:
        lr, decay = self.lr, self.weight_decay
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay, foreach=self.foreach, fused=self.fused)
