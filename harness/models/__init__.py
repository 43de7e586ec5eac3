"""Backbones by name, and what is done to them: swap a block in, fuse it away, make batch norms look lived in."""

from harness.models.annealing import Annealing
from harness.models.backbones import build, input_shape, names
from harness.models.describing import describe
from harness.models.fuse import NothingToFold, fuse
from harness.models.layers import LayerChange
from harness.models.randomize import randomize_statistics
from harness.models.swap import swap

__all__ = [
    "Annealing",
    "LayerChange",
    "NothingToFold",
    "build",
    "describe",
    "fuse",
    "input_shape",
    "names",
    "randomize_statistics",
    "swap",
]
