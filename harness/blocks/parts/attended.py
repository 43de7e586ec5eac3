"""What attentions behind a convolution have in common: a plain convolution with its batch norm, then the attention.

    train   y = A(bn(W * x))
    fused   y = A(W' * x + b),   W' = fold(W)

A, the attention, rescales what it is given and is not linear: it stays behind the fused convolution as it is.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)); A keeps its input's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.blocks.algebra import Kernel
from harness.blocks.base import ConvSpec, FusableBlock
from harness.blocks.declared import Choice
from harness.blocks.parts.branches import ConvBN
from harness.errors import Unsupported


class Attended(FusableBlock):
    """y = after(bn(W * x)). A subclass puts its attention into `after`, behind `super().__init__(spec, **options)`."""

    def __init__(self, spec: ConvSpec, **options: Choice) -> None:
        super().__init__(spec, **options)
        self.branch = ConvBN(spec)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.after(self.branch(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return self.branch.kernel()


def gated(x_NCHW: Tensor, logits: Tensor) -> Tensor:
    """x * sigmoid(logits), in x's dtype: under autocast layer norms, and products with parameters, are in float32."""
    return x_NCHW * torch.sigmoid(logits.to(x_NCHW.dtype))


def added_gated(x_NCHW: Tensor, logits: Tensor) -> Tensor:
    """x * (1 + sigmoid(logits)), in x's dtype."""
    # x + x * sigmoid keeps a map less for backward, and takes a fifth longer: x's gradients are added in a pass more.
    return x_NCHW * (1 + torch.sigmoid(logits.to(x_NCHW.dtype)))


class PooledBatchNorm(nn.BatchNorm2d):
    """A batch norm of a map that an attention has pooled, maybe to one pixel, that refuses by name what it cannot be.

    Raises Unsupported in training for a single value per channel.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if self.training and x_NCHW.shape[0] * x_NCHW.shape[2:].numel() == 1:
            raise Unsupported(
                "an attention's batch norm cannot be trained on one sample pooled to one pixel: it has no variance",
                remedy="use a batch of 2 or more, larger images, or (block ge) a smaller extent or learned: none",
            )
        return super().forward(x_NCHW)
