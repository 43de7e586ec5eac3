"""The harness's own backbones: the plain RepVGG topology and a single convolution."""

from __future__ import annotations

from collections import OrderedDict

from timm.models import checkpoint_seq
from torch import Tensor, nn

DEPTHS = {"a": (2, 4, 14, 1), "b": (4, 6, 16, 1)}
"""Blocks in stages 1 to 4 (stage 0, the stem, has one): Ding et al., CVPR 2021, arXiv:2101.03697, table 2."""

WIDTHS = {
    "a0": (0.75, 2.5), "a1": (1.0, 2.5), "a2": (1.5, 2.75), "b0": (1.0, 2.5), "b1": (2.0, 4.0), "b2": (2.5, 5.0)
}  # fmt: skip
"""(a, b) of the paper's table 3: stages 1 to 3 are 64, 128 and 256 times a wide, stage 4 is 512 times b."""


class ConvSlot(nn.Sequential):
    """One layer of a plain net: conv, norm, ReLU. conv and norm are what a block takes the place of."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        conv = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        super().__init__(OrderedDict(conv=conv, norm=nn.BatchNorm2d(c_out), act=nn.ReLU(inplace=True)))


class PlainNet(nn.Module):
    """RepVGG's topology with one 3x3 conv-BN-ReLU per layer and no branches.

    Shapes: (N, 3, H, W) -> (N, num_classes). Strides 2 in the stem and at the head of each stage.
    """

    stem_names: tuple[str, ...] = ("stem.conv",)

    def __init__(self, size: str, num_classes: int = 1000) -> None:
        super().__init__()
        a, b = WIDTHS[size]
        widths = (int(64 * a), int(128 * a), int(256 * a), int(512 * b))
        c_in = min(64, int(64 * a))
        self.stem = ConvSlot(3, c_in, stride=2)
        stages = []
        for width, depth in zip(widths, DEPTHS[size[0]], strict=True):
            slots = [ConvSlot(c_in if i == 0 else width, width, stride=2 if i == 0 else 1) for i in range(depth)]
            stages.append(nn.Sequential(*slots))
            c_in = width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(c_in, num_classes)
        self.num_classes = num_classes
        self.grad_checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As timm's models have it: in training every slot of the stages is computed again in backward."""
        self.grad_checkpointing = enable

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features = self.stem(x_NCHW)
        if self.grad_checkpointing and self.training:
            features = checkpoint_seq(self.stages, features, flatten=True)
        else:
            features = self.stages(features)
        features = self.pool(features)
        logits: Tensor = self.head(features.flatten(1))
        return logits


class Layer(nn.Module):
    """A single convolution slot, for studies of kernels.

    Shapes: (N, c_in, H, W) -> (N, c_out, ceil(H / stride), ceil(W / stride)); no classifier.
    """

    stem_names: tuple[str, ...] = ()  # its one convolution is what is studied

    def __init__(
        self,
        c_in: int = 64,
        c_out: int = 64,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(c_in, c_out, kernel_size, stride, padding, dilation, groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.norm(self.conv(x_NCHW))
        return y_NCHW
