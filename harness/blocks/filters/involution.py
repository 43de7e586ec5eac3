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

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.base import BLOCKS, Block, ConvSpec
from harness.blocks.parts.branches import widen
from harness.blocks.parts.per_sample import KernelWork, MapWork

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
        return self.bn(self.filter(x_NCHW, self.kernels(x_NCHW)))  # type: ignore[no-any-return]


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


class WindowSum(MapWork):
    """Weighed sums over the window of every output: the adaptive filter of involution and CARAFE.

    x (N, C, H, W), weights (N, G, k k, P, H', W') -> (N, C P, H', W'), P sums over each window, for consecutive
    channels of the output; G divides C. Windows are placed as the spec's convolution has them.
    """

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x_NCHW: Tensor, weights: Tensor) -> Tensor:
        # under autocast the weights come from a convolution and x may not
        sums: Tensor = _WindowSum.apply(x_NCHW.to(weights.dtype), weights, self.spec)
        return sums


class _WindowSum(torch.autograd.Function):
    """Tap by tap: nothing of the size of k k maps is made, and backward needs no more than the two inputs."""

    @staticmethod
    def forward(x_NCHW: Tensor, weights: Tensor, spec: ConvSpec) -> Tensor:
        batch, groups, _, phases, rows, columns = weights.shape
        x = _padded(x_NCHW, groups, spec)
        exact = _exact(weights.dtype)
        sums = x.new_zeros(batch, groups, x.shape[2], phases, rows, columns, dtype=exact)
        for tap, window in enumerate(_windows(x, rows, columns, spec)):
            sums.addcmul_(window.to(exact), weights[:, :, tap, None].to(exact))
        return sums.reshape(batch, -1, rows, columns).to(weights.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, ConvSpec], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.spec = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad_NCHW: Tensor) -> tuple[Tensor, Tensor, None]:
        x_NCHW, weights = ctx.saved_tensors
        spec: ConvSpec = ctx.spec
        batch, groups, _, phases, rows, columns = weights.shape
        exact = _exact(weights.dtype)
        x = _padded(x_NCHW, groups, spec)
        grad = grad_NCHW.reshape(batch, groups, -1, phases, rows, columns).to(exact)
        x_grad = torch.zeros_like(x, dtype=exact)
        weights_grad = torch.empty_like(weights)
        places = zip(_windows(x, rows, columns, spec), _windows(x_grad, rows, columns, spec), strict=True)
        for tap, (window, window_grad) in enumerate(places):
            weights_grad[:, :, tap] = (grad * window.to(exact)).sum(2)
            for phase in range(phases):
                window_grad[:, :, :, 0].addcmul_(grad[:, :, :, phase], weights[:, :, tap, phase, None].to(exact))
        x_grad_NCHW = x_grad.reshape(batch, -1, *x.shape[4:])
        return widen(x_grad_NCHW, -spec.padding, -spec.padding).to(weights.dtype), weights_grad, None


def _padded(x_NCHW: Tensor, groups: int, spec: ConvSpec) -> Tensor:
    """(N, G, C / G, 1, rows, columns), zeros around the map; contiguous, since windows are read row by row."""
    x = widen(x_NCHW.contiguous(), spec.padding, spec.padding)
    return x.reshape(x.shape[0], groups, -1, 1, *x.shape[2:])


def _windows(x: Tensor, rows: int, columns: int, spec: ConvSpec) -> Iterator[Tensor]:
    """What each tap sees for all the outputs, taps row by row: views of the padded map."""
    for top, left in product(range(0, spec.dilation * spec.kernel_size, spec.dilation), repeat=2):
        bottom, right = top + spec.stride * (rows - 1) + 1, left + spec.stride * (columns - 1) + 1
        yield x[..., top : bottom : spec.stride, left : right : spec.stride]


def _exact(dtype: torch.dtype) -> torch.dtype:
    """What to add up in: 49 taps one by one would lose two of bfloat16's eight bits."""
    return torch.promote_types(dtype, torch.float32)
