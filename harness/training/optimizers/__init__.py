"""Optimizers by name, one file each; importing this package imports them all."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from harness.training.optimizers.base import OPTIMIZERS, OptimizerFactory, choose, declaration

__all__ = ["OPTIMIZERS", "OptimizerFactory", "choose", "declaration"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
