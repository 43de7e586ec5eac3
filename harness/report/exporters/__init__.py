"""One file per format of the report; importing the package registers all of them, and nothing heavy with them."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from harness.report.exporter import EXPORTERS

__all__ = ["EXPORTERS"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
