"""One file per metric; importing the package registers all of them."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from harness.metrics.base import METRICS, Metric, Step
from harness.metrics.subject import Subject

__all__ = ["METRICS", "Metric", "Step", "Subject"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
