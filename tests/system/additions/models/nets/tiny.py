"""Tiny nets: a stem, two 3x3 layers and a classifier.

Shapes: (N, 3, H, W) -> (N, num_classes), the last maps H / 4.
"""

from __future__ import annotations

from torch import Tensor, nn

from harness.models.nets.own import OwnNet, register
from harness.models.nets.plain_vgg import ConvSlot

WIDTHS = (8, 16)


class TinyNet(OwnNet):
    """All layers `width` channels wide."""

    stem_names = ("stem.conv",)

    def __init__(self, width: int, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = ConvSlot(3, width, stride=2)
        self.layers = nn.Sequential(ConvSlot(width, width, stride=1), ConvSlot(width, width, stride=2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.through(self.layers, self.stem(x_NCHW))).flatten(1))
        return logits


for _width in WIDTHS:
    register(f"tiny_{_width}", TinyNet, _width)
