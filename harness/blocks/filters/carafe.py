"""CARAFE: every output is a weighed mean of a k x k window, with weights that the features themselves predict.

    y[n, c, i, j] = sum_t M[n, g(c), t, i, j] x[n, c, pixel t of the window centred at (i // s, j // s)]
    M = softmax over t of pixel_shuffle_s(E (C x + c) + e)

As published it is an up-sampler by s (class `CARAFE`): C a 1x1 convolution to `compressed` = 64 channels, E an
`encoder_size` x `encoder_size` one to s s k k groups, s = 2, k = 5, encoder_size = 3, both with a bias. After the
pixel shuffle the channels are (group, tap), taps row by row; zeros around the map. g(c) is the run of C / groups
channels that c is in. The windows of the s s outputs of a pixel are one and the same, so the sum is taken at the
resolution of x, with s s sets of weights, and shuffled to the outputs' places last: nothing up-sampled is unfolded.
Shapes: x (N, C, H, W) -> y (N, C, s H, s W). Parameters: 64 C + 64 + 577 s s k k groups.

The block `carafe` is the same operator at s = 1, as a filter in the place of a convolution:

    y = bn(P reassemble(x))        P a 1x1 convolution where c_in != c_out, nothing where they are equal

with the kernel size, stride, dilation and padding of that convolution: windows stand where it has them, and E has its
stride. CARAFE++ describes such uses beyond up-sampling; the reference that this follows has no figures for them and
the authors' choices were not retrieved: unverified. k = 1 is left out, a softmax over one tap is always 1. Groups are
left out, the weights look at all channels.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).

Initialisation: C xavier uniform, E normal with deviation 1e-3; biases zero, which the reference leaves open. So every
window starts as its mean, nearly.
Paper: Wang et al., CARAFE, ICCV 2019, arXiv:1905.02188, section 3; CARAFE++, arXiv:2012.04733.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.base import BLOCKS, Block, ConvSpec
from harness.blocks.parts.branches import widen
from harness.blocks.parts.per_sample import KernelWork
from harness.blocks.parts.window_sum import WindowSum
from harness.errors import Unsupported

COMPRESSED, ENCODER_SIZE = 64, 3


class CARAFE(nn.Module):
    """Up-samples by `scale`: x (N, channels, H, W) -> (N, channels, scale H, scale W).

    Raises Unsupported for sizes that have no centre, for less than one of anything and for groups that do not divide
    the channels.
    """

    def __init__(
        self,
        channels: int,
        scale: int = 2,
        kernel_size: int = 5,
        groups: int = 1,
        compressed: int = COMPRESSED,
        encoder_size: int = ENCODER_SIZE,
    ) -> None:
        super().__init__()
        for name, size in (("kernel_size", kernel_size), ("encoder_size", encoder_size)):
            if size % 2 == 0:
                raise Unsupported(f"CARAFE: {name} {size} has no centre", remedy=f"use an odd {name}")
        if scale < 1 or compressed < 1:
            problem = f"CARAFE: scale {scale} and {compressed} compressed channels"
            raise Unsupported(problem, remedy="use whole numbers, 1 or more")
        self.scale = scale
        spec = ConvSpec(channels, channels, kernel_size, groups=groups)
        self.weights = WindowWeights(spec, groups, scale, compressed, encoder_size)
        self.reassemble = WindowSum(spec)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.pixel_shuffle(self.reassemble(x_NCHW, self.weights(x_NCHW)), self.scale)


@BLOCKS.register("carafe")
class CARAFEFilter(Block):
    paper = (
        "Wang et al., CARAFE: Content-Aware ReAssembly of FEatures, ICCV 2019, arXiv:1905.02188, section 3; at scale 1"
    )
    kernel_sizes = tuple(range(3, 14, 2))
    groups = "dense"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        groups_of_kernels: Annotated[Literal[1, 2, 4], "runs of channels with weights of their own"] = 1,
    ) -> None:
        super().__init__(spec, groups_of_kernels=groups_of_kernels)
        if spec.c_in % groups_of_kernels:
            problem = f"block carafe: c_in = {spec.c_in} is not a multiple of groups_of_kernels = {groups_of_kernels}"
            raise Unsupported(problem, remedy="use groups_of_kernels 1")
        self.weights = WindowWeights(spec, groups_of_kernels)
        self.reassemble = WindowSum(spec)
        self.point = nn.Identity() if spec.c_in == spec.c_out else nn.Conv2d(spec.c_in, spec.c_out, 1, bias=False)
        self.bn = nn.BatchNorm2d(spec.c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(self.point(self.reassemble(x_NCHW, self.weights(x_NCHW))))
        return y_NCHW


class WindowWeights(KernelWork):
    """M: (N, c_in, H, W) -> (N, groups, k k, scale scale, H', W'), sums over the taps 1; H' and W' the spec's output.

    The scale scale weights of a pixel are those of its outputs, row by row.
    """

    def __init__(
        self,
        spec: ConvSpec,
        groups: int,
        scale: int = 1,
        compressed: int = COMPRESSED,
        encoder_size: int = ENCODER_SIZE,
    ) -> None:
        super().__init__()
        self.shape = groups, spec.kernel_size**2, scale**2
        # centred where the windows are: the margin is the block's, and the dilation only theirs
        place = replace(spec, kernel_size=encoder_size, dilation=1)
        self.cropped = min(place.padding, 0)
        self.compress = nn.Conv2d(spec.c_in, compressed, 1)
        self.encode = nn.Conv2d(
            compressed, groups * spec.kernel_size**2 * scale**2, encoder_size, spec.stride, max(place.padding, 0)
        )
        nn.init.xavier_uniform_(self.compress.weight)
        nn.init.normal_(self.encode.weight, std=1e-3)
        for conv in (self.compress, self.encode):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        compressed_NCHW = self.compress(widen(x_NCHW, self.cropped, self.cropped))
        logits_NCHW: Tensor = self.encode(compressed_NCHW)
        logits = logits_NCHW.reshape(-1, *self.shape, *logits_NCHW.shape[2:])
        return logits.softmax(2).to(logits.dtype)  # autocast takes a softmax in float32
