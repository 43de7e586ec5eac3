"""Backbones: one file a family of our own, and timm's and torchvision's; importing this package imports them all."""

from __future__ import annotations

import pkgutil
from importlib import import_module

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
