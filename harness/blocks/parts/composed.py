"""Blocks that are one linear function and, where they have one, a batch norm behind it: the two evaluations, once.

    offline  y = bn(f(x))            the function's own operations on the feature map
    online   y = bn(W * x + b)       its kernel composed in every step, one convolution
    fused    y = W' * x + b',        fold(W, b)

No branch has a norm of its own, so both train alike and not only in eval. `Chain` is what most of them are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import ConvSpec, FusableBlock
from harness.blocks.declared import Choice
from harness.blocks.parts.branches import Branch
from harness.blocks.parts.cached import CachedKernel
from harness.blocks.parts.composition import no_autocast

_Factor = tuple[Tensor, Tensor | None]
"""Weight and bias; either all factors of a chain have a bias or none."""


class ComposedBlock(FusableBlock):
    """A subclass sets, after `super().__init__(spec, **options)`:

    linear: a `Branch`, x (N, c_in, H, W) -> (N, c_out, H', W'), all of the block but the norm.
    bn: a batch norm, or nn.Identity where there is none.
    reparam: "offline" or "online".
    """

    linear: nn.Module
    bn: nn.Module
    reparam: str

    def __init__(self, spec: ConvSpec, **options: Choice) -> None:
        super().__init__(spec, **options)
        self._cache = CachedKernel()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(self._online(x_NCHW) if self.reparam == "online" else self.linear(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return algebra.fold_biased(self._composed(), self.bn)

    def _composed(self) -> Kernel:
        """W (c_out, c_in / g, k, k) and b (c_out,), composed outside autocast."""
        linear: Branch = self.linear  # type: ignore[assignment]
        with no_autocast(next(self.parameters()).device):
            return linear.kernel()

    def _online(self, x_NCHW: Tensor) -> Tensor:
        s = self.spec
        weight, bias = self._cache.get(self, self._composed)
        return F.conv2d(x_NCHW, weight, bias, s.stride, s.padding, s.dilation, s.groups)


def norm_behind(wanted: bool, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if wanted else nn.Identity()


class Chain(nn.Module):
    """Convolutions in a row and nothing between them: y = F_n * (... (F_1 * pad(x) + b_1) ...) + b_n.

    widths: channels in front of, between and behind them, n + 1 numbers; sizes: their n kernel sizes.

    All have the spec's groups; those larger than 1x1 have its dilation, and the last of these its stride. All the
    padding is the first one's. What comes out of it is then as large as the later ones read and holds b_1 where it saw
    nothing but zeros: so the chain is one convolution at the rim too. Initialised as torch does.
    """

    def __init__(self, spec: ConvSpec, widths: Sequence[int], sizes: Sequence[int], bias: bool) -> None:
        super().__init__()
        self.groups = spec.groups
        strided = max((i for i, size in enumerate(sizes) if size > 1), default=0)
        self.factors = nn.Sequential()
        for i, ((c_in, c_out), size) in enumerate(zip(pairwise(widths), sizes, strict=True)):
            stride, padding = spec.stride if i == strided else 1, spec.padding if i == 0 else 0
            dilation = spec.dilation if size > 1 else 1
            self.factors.append(nn.Conv2d(c_in, c_out, size, stride, padding, dilation, spec.groups, bias))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.factors(x_NCHW)
        return y_NCHW

    def kernel(self) -> Kernel:
        """W (c_out, c_in / g, k, k) and b, pair by pair from that end where the products stay small.

        That is the last one where a 1x1 mixes the channels down, else the first: a factor then slides over what has
        grown in front of it, and not the other way round.
        """
        kernels = list(self._kernels())
        if kernels[-1][0].shape[2:] == (1, 1):
            weight, bias = reduce(lambda later, earlier: self._merged(earlier, later), reversed(kernels))
        else:
            weight, bias = reduce(self._merged, kernels)
        return Kernel(weight, weight.new_zeros(weight.shape[0]) if bias is None else bias)

    def _merged(self, first: _Factor, second: _Factor) -> _Factor:
        weight = algebra.series(first[0], second[0], self.groups)
        if first[1] is None or second[1] is None:
            return weight, None
        return weight, second[1] + algebra.carry(first[1], second[0], self.groups)

    def _kernels(self) -> Iterator[_Factor]:
        for factor in self.factors:
            assert isinstance(factor, nn.Conv2d)
            yield factor.weight, factor.bias
