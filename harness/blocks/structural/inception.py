"""GoogLeNet's Inception module: windows of several sizes side by side, concatenated.

    y = [ bn(A * x),
          bn(B * relu(bn(b * x))),         b 1x1, B k x k
          bn(C * relu(bn(c * x))),         c 1x1, C (k + 2) x (k + 2), or k x k without `five`
          bn(D * maxpool(x)) ]             k x k windows, D 1x1

The widths are those of the module Inception(192, 64, 96, 128, 16, 32, 32) in front of 256 channels, as shares of c_out:
A 1/4, b 3/8, B 1/2, c 1/16, C 1/8, D 1/8. Where they are no whole numbers A, C and D are rounded down, but not to
nothing, B gets the rest, and b and c are rounded up. `five` off is what torchvision ships under that name.

The paper has no batch norm; as in the later versions and torchvision there is one behind every convolution (eps as
elsewhere here, not 1e-3). A module ends each branch in a ReLU: that is left to the network, which applies it to the
concatenation, to the same effect. Strides are not the paper's: A, B, C and the pool have them. A margin is theirs too:
zeros where it is positive, which the pool counts as pixels. Where x needs a gradient the pool keeps an index of 8 bytes
for each pixel that it makes: in float32 at stride 1 that is twice the input.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Szegedy et al., Going Deeper with Convolutions, CVPR 2015, arXiv:1409.4842, section 4 and table 1 (3a).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.base import BLOCKS, Block, ConvSpec
from harness.blocks.declared import KERNEL_SIZES
from harness.blocks.parts.branches import ConvBN, widen
from harness.blocks.parts.stages import in_a_row, point
from harness.errors import Unsupported


class Widths(NamedTuple):
    """Channels behind the convolutions A, b, B, c, C and D."""

    one: int
    to_square: int
    square: int
    to_large: int
    large: int
    pool: int


@BLOCKS.register("inception")
class Inception(Block):
    paper = "Szegedy et al., Going Deeper with Convolutions, CVPR 2015, arXiv:1409.4842, section 4 and table 1"
    kernel_sizes = KERNEL_SIZES[1:]
    groups = "dense"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        five: Annotated[
            bool, "the third branch's kernel two larger than k, as in the paper, not k as torchvision's"
        ] = True,
    ) -> None:
        super().__init__(spec, five=five)
        width, size = _widths(spec.c_out), spec.kernel_size
        self.branches = nn.ModuleList(
            [
                ConvBN(replace(spec.resized(1), c_out=width.one)),
                _narrowed(spec, width.to_square, width.square, size),
                _narrowed(spec, width.to_large, width.large, size + 2 if five else size),
                nn.Sequential(MaxPool(spec), point(spec.c_in, width.pool)),
            ]
        )
        for name, branch in zip(("1x1", "k x k", "larger", "pool"), self.branches, strict=True):
            branch.branch_name = name  # type: ignore[assignment]

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.cat([branch(x_NCHW) for branch in self.branches], 1)


def _widths(c_out: int) -> Widths:
    if c_out < 4:
        problem = f"block inception has four branches side by side, c_out = {c_out} leaves one without channels"
        raise Unsupported(problem, remedy="use c_out >= 4")
    one, eighth = c_out // 4, max(c_out // 8, 1)
    return Widths(one, -(-3 * c_out // 8), c_out - one - 2 * eighth, -(-c_out // 16), eighth, eighth)


def _narrowed(spec: ConvSpec, between: int, c_out: int, kernel_size: int) -> nn.Sequential:
    """bn(W * relu(bn(w * x))), w 1x1: the spec's place with another kernel size, whose margin is the same."""
    square = ConvBN(replace(spec, c_in=between, c_out=c_out, kernel_size=kernel_size))
    return in_a_row([point(spec.c_in, between), square])


class MaxPool(nn.Module):
    """The largest pixel of each of the convolution's windows; what is around the map is none, but for a margin."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.margin = max(spec.margin, 0)
        around = spec.padding - self.margin
        # torch allows half a kernel of padding and does not count the dilation
        self.around, own = (around, 0) if spec.dilation > 1 else (0, around)
        self.pool = nn.MaxPool2d(spec.kernel_size, spec.stride, own, spec.dilation)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = widen(x_NCHW, self.margin, self.margin)
        if self.around:
            x_NCHW = F.pad(x_NCHW, [self.around] * 4, value=-math.inf)
        y_NCHW: Tensor = self.pool(x_NCHW)
        return y_NCHW
