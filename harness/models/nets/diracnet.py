"""DiracNet's topology: plain, without shortcuts, downsampling by pooling alone.

    layer   y = bn(W * relu(x)),   W a plain 3x3 here, DiracNet's own with block `dirac`

Paper: Zagoruyko and Komodakis, DiracNets, arXiv:1706.00388, as in the authors' version 2.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from harness.models.nets.own import OwnNet, register

LAYERS = {"18": (4, 4, 4, 4), "34": (6, 8, 12, 6)}
"""Of the ImageNet networks: 3x3 layers in the groups of 64, 128, 256 and 512 channels."""

CIFAR = {"34_2": (34, 2), "28_10": (28, 10)}
"""Depth and width of the published CIFAR networks."""


class DiracSlot(nn.Sequential):
    """One layer: ReLU, 3x3, norm. conv and norm are what a block takes the place of."""

    def __init__(self, c_in: int, c_out: int) -> None:
        conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        super().__init__(OrderedDict(act=nn.ReLU(), conv=conv, norm=nn.BatchNorm2d(c_out)))


class DiracNet(OwnNet):
    """The network for ImageNet: a 7x7 stem, four groups of layers, pooling by two between them.

    Shapes: (N, 3, H, W) -> (N, num_classes), the last maps H / 32; the first layer of a group widens.
    """

    stem_names = ("stem.conv",)

    def __init__(self, depth: str, num_classes: int = 1000) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stem = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(64), pool=pool))  # its ReLU: the layer's
        self.layers = _layers(64, (64, 128, 256, 512), LAYERS[depth])
        self.head = _head(512, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(self.through(self.layers, self.stem(x_NCHW)))
        return logits


class CifarDiracNet(OwnNet):
    """The network for CIFAR: a 3x3 stem, three groups of 2 n layers, n = (depth - 4) / 6, 16, 32 and 64 times `width`.

    Shapes: (N, 3, H, W) -> (N, num_classes), the last maps H / 4. The stem's ReLU is the first layer's.
    """

    stem_names = ("stem.conv",)

    def __init__(self, depth: int, width: int, num_classes: int = 1000) -> None:
        super().__init__()
        c_in, layers = 16 * width, 2 * ((depth - 4) // 6)
        conv = nn.Conv2d(3, c_in, 3, padding=1, bias=False)
        self.stem = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(c_in)))
        self.layers = _layers(c_in, (c_in, 2 * c_in, 4 * c_in), (layers,) * 3)
        self.head = _head(4 * c_in, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(self.through(self.layers, self.stem(x_NCHW)))
        return logits


def _layers(c_in: int, widths: tuple[int, ...], counts: tuple[int, ...]) -> nn.Sequential:
    """Groups of `counts` layers with `widths` channels, a max-pool between two groups."""
    layers: list[nn.Module] = []
    for width, count in zip(widths, counts, strict=True):
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            layers.append(DiracSlot(c_in, width))
            c_in = width
    return nn.Sequential(*layers)


def _head(channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


for _depth in LAYERS:
    register(f"diracnet{_depth}", DiracNet, _depth)

for _name, _size in CIFAR.items():
    register(f"diracnet{_name}_cifar", CifarDiracNet, *_size)
