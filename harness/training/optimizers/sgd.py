"""sgd: stochastic gradient descent with momentum, and RepVGG's custom L2 in place of the usual decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from harness.errors import Unsupported
from harness.training import custom_l2
from harness.training.optimizers.base import OPTIMIZERS, OptimizerFactory


@OPTIMIZERS.register("sgd")
@dataclass(frozen=True, kw_only=True)
class SGD(OptimizerFactory):
    """Stochastic gradient descent with momentum."""

    lr: Annotated[float, "the highest learning rate"] = 0.1
    momentum: Annotated[float, "share of the last step that is kept"] = 0.9
    nesterov: Annotated[bool, "look ahead along the momentum"] = False
    weight_decay: Annotated[float, "L2 penalty, as a part of the gradient"] = 0.0
    custom_l2: Annotated[bool, "decay the kernels that RepVGG's branches make, not the branches"] = False

    def create(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.custom_l2 and not self.weight_decay:
            raise Unsupported("custom_l2 is a weight decay, and that is 0", remedy="write weight_decay: 1e-4 beside it")
        return torch.optim.SGD(
            custom_l2.parameter_groups(model) if self.custom_l2 else model.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            foreach=self.foreach,
            fused=self.fused,
        )

    def regularized(self, loss: Tensor, model: nn.Module) -> Tensor:
        return loss + custom_l2.penalty(model, self.weight_decay) if self.custom_l2 else loss
