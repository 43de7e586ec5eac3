"""repopt: RepOptimizer's SGD or AdamW of a plain network (rep_optimizers.py), which begins as the branches imagined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import nn

from harness.errors import Unsupported
from harness.records import Json
from harness.training.optimizers.adamw import AdamW
from harness.training.optimizers.base import OPTIMIZERS, OptimizerFactory
from harness.training.optimizers.sgd import SGD
from harness.training.rep_optimizers import RepAdamW, RepSGD, default_scales, initialize


@OPTIMIZERS.register("repopt")
@dataclass(frozen=True, kw_only=True)
class RepOptimizer(OptimizerFactory):
    """A plain network trained as if it had RepVGG's branches; it is given their initial weights too."""

    base: Annotated[Literal["sgd", "adamw"], "the optimizer whose gradients are scaled"] = "sgd"
    lr: Annotated[float | None, "the highest learning rate; by default the base's"] = None
    momentum: Annotated[float, "of base sgd: share of the last step that is kept"] = 0.9
    nesterov: Annotated[bool, "of base sgd: look ahead along the momentum"] = False
    weight_decay: Annotated[float | None, "as the base means it; by default the base's"] = None

    @classmethod
    def check(cls, written: Mapping[str, Json]) -> None:
        for name in ("momentum", "nesterov"):
            if written.get("base") == "adamw" and written.get(name):
                raise Unsupported(f"AdamW has no {name}", remedy=f"leave {name} out, or use base: sgd")

    def create(self, model: nn.Module) -> torch.optim.Optimizer:
        scales = default_scales(model)
        initialize(scales)
        base = SGD if self.base == "sgd" else AdamW
        lr = base.lr if self.lr is None else self.lr
        decay = base.weight_decay if self.weight_decay is None else self.weight_decay
        parameters, foreach, fused = model.parameters(), self.foreach, self.fused
        if self.base == "sgd":
            return RepSGD(parameters, scales, lr, self.momentum, decay, self.nesterov, foreach=foreach, fused=fused)
        return RepAdamW(parameters, scales, lr, weight_decay=decay, foreach=foreach, fused=fused)
