"""harness: what a convolution block costs to train and to run, how exactly it folds, and whether that still holds.

    suite = harness.load_suite("suites/quick.yaml")
    run = harness.run(suite)
    print(run.frame())

The names below are imported when they are first used, so ``import harness`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness import blocks
    from harness.api import run
    from harness.models.fuse import fuse
    from harness.models.swap import swap
    from harness.planning import plan
    from harness.store.run import open_run
    from harness.suite import load_suite

__all__ = ["blocks", "fuse", "load_suite", "open_run", "plan", "run", "swap"]

_HOMES = {
    "load_suite": "harness.suite",
    "plan": "harness.planning",
    "run": "harness.api",
    "open_run": "harness.store.run",
    "swap": "harness.models.swap",
    "fuse": "harness.models.fuse",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "blocks":
        return import_module("harness.blocks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
