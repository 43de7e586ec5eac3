"""One file per metric; importing the package registers all of them."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from harness.measuring.metric import METRICS

__all__ = ["METRICS"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
