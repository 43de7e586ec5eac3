"""OREPA's linear deep stem: a large kernel trained as a stack of 3x3 stages, one batch norm behind them.

    train   y = bn(W_n * ... * (W_1 * pad(x)))     offline: n = (k - 1) / 2 stages, each with its branches on features
            y = bn(W * x),   W = stack of the W_i  online: composed and squeezed as kernels, one convolution
    fused   y = W' * x + b,   W' = fold(W)

Each W_i is OREPA's sum of six branches (orepa.py) with scales of its own and no norm: C -> O, then O -> O, all in the
block's groups. `pad` puts dilation * (k // 2) zeros around x, all that the stack needs: between stages nothing is
padded, which is what makes it one convolution at the rim too. Every stage has the dilation, the last the stride.

The authors' code squeezes without flipping the later kernels: as good a generator of kernels, but not the stack's.
Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Hu et al., Online Convolutional Re-parameterization, CVPR 2022, arXiv:2204.00826, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce

from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.cached import CachedKernel
from harness.blocks.parts.composition import no_autocast
from harness.blocks.parts.linear_branches import COMPOSITION, NORM, PAPER, REPARAM, SCALING, LinearBranches


@BLOCKS.register("orepa_stem")
class OREPAStem(FusableBlock):
    paper = PAPER
    kernel_sizes = (5, 7, 9, 11, 13)

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: REPARAM = "online",
        scaling: SCALING = "vector",
        composition: COMPOSITION = "lean",
        norm: NORM = True,
    ) -> None:
        super().__init__(spec, reparam=reparam, scaling=scaling, composition=composition, norm=norm)
        first = replace(spec, kernel_size=3, stride=1, margin=0)
        later = [replace(first, c_in=spec.c_out) for _ in range(spec.kernel_size // 2 - 1)]
        later[-1] = replace(later[-1], stride=spec.stride)
        self.stages = nn.ModuleList(
            LinearBranches(place, scaling=scaling, composition=composition, padding=padding)
            for place, padding in zip([first, *later], [spec.padding, *[0] * len(later)], strict=True)
        )
        self.bn = nn.BatchNorm2d(spec.c_out) if norm else nn.Identity()
        self.reparam = reparam
        self._cache = CachedKernel()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        stacked = self._online if self.reparam == "online" else self._offline
        y_NCHW: Tensor = self.bn(stacked(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return algebra.fold(self._weight("plain"), self.bn)

    def _weight(self, composition: str | None = None) -> Tensor:
        """W (O, C/g, k, k), composed and squeezed outside autocast."""
        stages: Iterable[LinearBranches] = self.stages  # type: ignore[assignment]
        kernels = [stage.kernel(composition) for stage in stages]
        with no_autocast(kernels[0].device):
            squeezed = reduce(lambda first, second: algebra.stack(first, second, self.spec.groups), kernels)
        return squeezed.contiguous()

    def _online(self, x_NCHW: Tensor) -> Tensor:
        s = self.spec
        return F.conv2d(x_NCHW, self._cache.get(self, self._weight), None, s.stride, s.padding, s.dilation, s.groups)

    def _offline(self, x_NCHW: Tensor) -> Tensor:
        stages: Iterable[LinearBranches] = self.stages  # type: ignore[assignment]
        for stage in stages:
            x_NCHW = stage.offline(x_NCHW)
        return x_NCHW
