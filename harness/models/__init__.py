"""What is done to a model: a block swapped in, fused away, batch norms made to look lived in; backbones in `nets`."""

from harness.models.describing import describe
from harness.models.fuse import NothingToFold, fuse
from harness.models.layers import LayerChange
from harness.models.nets.backbones import build, input_shape, names
from harness.models.randomize import randomize_statistics
from harness.models.swap import swap

__all__ = [
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
