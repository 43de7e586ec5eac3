"""Involution: a kernel of its own for every pixel, made from that pixel and shared by the channels of a group.

    y = bn(z),   z[n, c, i, j] = sum_t H[n, g(c), t, i, j] x[n, c, pixel t of the window at (i, j)]
    H = E relu(bn(R pool(x))) + e

Channels are not mixed, hence c_out == c_in and no groups in a convolution's sense; g(c) is the run of `group_width`
channels that c is in, G = C / group_width of them, one where there are fewer channels than that. R (C // 4, C) and
E (G k k, C // 4) are 1x1 convolutions, E with a bias e; E's channels are (group, tap), taps row by row.

At a stride s > 1 `pool` averages s x s pixels, so that H has as many rows and columns as the output. Its last windows
may be partial (ceil_mode), as a convolution's are: the authors' floor fails on odd sizes. Where the padding is not
"same", H is made from the map with the missing zeros around it (or cropped): one kernel per output in every case.

Shapes: x (N, C, H, W) -> y (N, C, ceil(H / stride), ceil(W / stride)); RedNet uses k = 7.
Initialisation is torch's default for a convolution: the reference that this follows gives none.
Paper: Li et al., Involution, CVPR 2021, arXiv:2103.06255, section 3.

The sum over the window is taken tap by tap, in place, on views of the padded map. Against unfolding it, multiplying
and summing, on one CPU thread, a forward and backward pass took 1/4 of the time for k = 3 and 1/6 for k = 7 at
8x64x56x56 (1/2 and 1/4 at 8x256x14x14); an einsum or batched product of the unfolded map took 1.2 to 1.7 times as
long as that. Kept for backward are x and H instead of k k copies of x.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.base import BLOCKS, Block, ConvSpec
from harness.blocks.parts.branches import widen
from harness.blocks.parts.per_sample import KernelWork
from harness.blocks.parts.window_sum import WindowSum

REDUCTION = 4


@BLOCKS.register("involution")
class Involution(Block):
    paper = (
        "Li et al., Involution: Inverting the Inherence of Convolution for Visual Recognition, CVPR 2021, "
        "arXiv:2103.06255, section 3"
    )
    groups = "dense"
    same_channels = True

    def __init__(
        self,
        spec: ConvSpec,
        *,
        group_width: Annotated[Literal[8, 16, 32], "channels that share a kernel"] = 16,
    ) -> None:
        super().__init__(spec, group_width=group_width)
        if spec.c_in > group_width:
            self._refuse_remainder(group_width, "the channels that share a kernel (option group_width)")
        self.kernels = KernelPerPixel(spec, max(1, spec.c_in // group_width))
        self.filter = WindowSum(spec)
        self.bn = nn.BatchNorm2d(spec.c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(self.filter(x_NCHW, self.kernels(x_NCHW)))
        return y_NCHW


class KernelPerPixel(KernelWork):
    """H = E relu(bn(R pool(x))) + e: (N, C, H, W) -> (N, G, k k, 1, H', W'), one kernel for each output of the spec."""

    def __init__(self, spec: ConvSpec, groups: int) -> None:
        super().__init__()
        self.margin, self.shape = spec.margin, (groups, spec.kernel_size**2, 1)
        hidden = max(1, spec.c_in // REDUCTION)
        # the output at (i, j) looks at the window centred at (s i, s j): those s x s pixels, all there are at the rim
        self.pool = nn.AvgPool2d(spec.stride, ceil_mode=True) if spec.stride > 1 else nn.Identity()
        self.reduce = nn.Conv2d(spec.c_in, hidden, 1, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.expand = nn.Conv2d(hidden, groups * spec.kernel_size**2, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        pooled_NCHW = self.pool(widen(x_NCHW, self.margin, self.margin))
        kernels_NCHW: Tensor = self.expand(F.relu(self.bn(self.reduce(pooled_NCHW))))
        return kernels_NCHW.reshape(-1, *self.shape, *kernels_NCHW.shape[2:])
