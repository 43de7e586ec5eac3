"""Datasets by name, one file each; the default travels in a dependency and needs no download."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from harness.data.base import DATASETS, Dataset, Split, declaration
from harness.data.images import as_images

__all__ = ["DATASETS", "Dataset", "Split", "as_images", "declaration", "load"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)


def load(name: str = "mnist") -> Dataset:
    """The dataset of that name. Raises UnknownName with the nearest names."""
    return DATASETS[name]()
