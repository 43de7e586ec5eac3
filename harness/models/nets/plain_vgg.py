"""PlainNet: RepVGG's topology without branches, in the sizes of its paper and of RepOptimizer's."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from harness.models.nets.own import OwnNet, register

DEPTHS = {"a": (2, 4, 14, 1), "b": (4, 6, 16, 1), "l": (8, 14, 24, 1)}
"""Blocks in stages 1 to 4 (stage 0, the stem, has one). a and b: Ding et al., RepVGG, CVPR 2021, arXiv:2101.03697,
table 2; l: the authors' deeper networks, of their repository and of RepOptimizer's."""

WIDTHS = {
    "a0": (0.75, 2.5), "a1": (1.0, 2.5), "a2": (1.5, 2.75), "b0": (1.0, 2.5), "b1": (2.0, 4.0), "b2": (2.5, 5.0),
    "b3": (3.0, 5.0), "l1": (2.0, 4.0), "l2": (2.5, 5.0),
}  # fmt: skip
"""(a, b) of the paper's table 3: stages 1 to 3 are 64, 128 and 256 times a wide, stage 4 is 512 times b."""

GROUPED = range(2, 27, 2)
"""Layers with groups in the networks called g2 and g4, the stem counted as 0: the paper's 3rd, 5th, ... 27th."""

SIZES = {
    **{size: (size, 1) for size in WIDTHS},
    **{f"{size}g{groups}": (size, groups) for size in WIDTHS if size[0] != "l" for groups in (2, 4)},
}
"""Name -> key of `WIDTHS` and groups. Published with groups are b1, b2 and b3."""


class ConvSlot(nn.Sequential):
    """One layer of a plain net: conv, norm, ReLU. conv and norm are what a block takes the place of."""

    def __init__(self, c_in: int, c_out: int, stride: int, groups: int = 1) -> None:
        conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, groups=groups, bias=False)
        super().__init__(OrderedDict(conv=conv, norm=nn.BatchNorm2d(c_out), act=nn.ReLU(inplace=True)))


class PlainNet(OwnNet):
    """RepVGG's topology with one 3x3 conv-BN-ReLU per layer and no branches; RepOptimizer trains it as it is.

    Shapes: (N, 3, H, W) -> (N, num_classes). Strides 2 in the stem and at the head of each stage.
    """

    stem_names = ("stem.conv",)

    def __init__(self, name: str, num_classes: int = 1000) -> None:
        super().__init__()
        size, groups = SIZES[name]
        a, b = WIDTHS[size]
        widths = (int(64 * a), int(128 * a), int(256 * a), int(512 * b))
        c_in = min(64, int(64 * a))
        self.stem = ConvSlot(3, c_in, stride=2)
        layer = 0
        stages = []
        for width, depth in zip(widths, DEPTHS[size[0]], strict=True):
            slots = []
            for i in range(depth):
                layer += 1
                shared = groups if layer in GROUPED else 1
                slots.append(ConvSlot(c_in, width, stride=2 if i == 0 else 1, groups=shared))
                c_in = width
            stages.append(nn.Sequential(*slots))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(c_in, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features = self.pool(self.through(self.stages, self.stem(x_NCHW), staged=True))
        logits: Tensor = self.head(features.flatten(1))
        return logits


for _size in SIZES:
    register(f"plain_{_size}", PlainNet, _size)
