"""OREPA's branches without norms: one linear function, on the feature map or composed into one kernel.

    W = sum_j v_j W_j,   y = W * x (online) or sum_j v_j (W_j * x) (offline)

The branches are listed in reparam/orepa.py. P, the taps of the prior:

    P[o, h, w] = cos(pi (h + 1/2) (o + 1) / k)          for o < O / 2
                 cos(pi (w + 1/2) (o + 1 - O / 2) / k)  for the others

v is (6, O), in the order of `COMPONENTS` (the authors have 1x1 after 1x1-kxk). A component that is switched off has no
parameters and no row of v; `points` then holds the others of average, prior and 1x1. The options are those of OREPA's
blocks. Paper: Hu et al., Online Convolutional Re-parameterization, CVPR 2022, arXiv:2204.00826, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial, reduce
from operator import add
from typing import Annotated, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.base import ConvSpec
from harness.blocks.parts.cached import CachedKernel
from harness.blocks.parts.composition import MULTIPLIER, Weights, lean, mixing, no_autocast, plain

PAPER = "Hu et al., Online Convolutional Re-parameterization, CVPR 2022, arXiv:2204.00826, section 3"
REPARAM = Annotated[
    Literal["offline", "online"], "branches on features, or composed into one kernel in every step (the paper)"
]
SCALING = Annotated[
    Literal["vector", "scalar", "none"], "a learned factor per branch and output channel, per branch, or none"
]

COMPOSITION = Annotated[
    Literal["lean", "plain"],
    "how the online kernel is composed: differentiated by hand, keeping only the parameters for backward, or by "
    "autograd, keeping every scaled term as a whole kernel (the paper's code)",
]
NORM = Annotated[bool, "the batch norm behind the sum; without it training is known to diverge"]
ORIGIN = Annotated[bool, "the k x k kernel that is there in any convolution"]
AVERAGE = Annotated[bool, "a 1x1, then averaging over the k x k taps"]
PRIOR = Annotated[bool, "a 1x1, then a fixed frequency of the k x k taps, another for each channel"]
POINT = Annotated[bool, "a 1x1 at the centre"]
CHAIN = Annotated[bool, "a 1x1 that starts as the identity, then a k x k"]
SEPARABLE = Annotated[bool, "a depthwise k x k with 8 outputs a channel, then a 1x1"]

COMPONENTS = {"origin": 0.25, "average": 0.25, "prior": 0.0, "point": 1.0, "chain": 0.5, "separable": 0.5}
"""The branches in the order of the scales' rows, with what their scale is at first."""
POINTS = ("average", "prior", "point")
"""Those that spread a 1x1 over fixed taps."""


class LinearBranches(nn.Module):
    """The sum of OREPA's branches before the norm: one linear function, on features or as a kernel.

    used: names of `COMPONENTS`; the others have no parameters, no scale and no basis.
    slope: the leaky slope a of the Kaiming-uniform initialisation.
    padding: zeros on each side of the input; by default the spec's, which keep the map's size.
    """

    origin: nn.Parameter | None
    first: nn.Parameter | None
    second: nn.Parameter | None
    depthwise: nn.Parameter | None
    pointwise: nn.Parameter | None

    def __init__(
        self,
        spec: ConvSpec,
        *,
        scaling: str,
        composition: str = "lean",
        used: Collection[str] = COMPONENTS.keys(),
        slope: float = 0.0,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.spec, self.used, self.composition = spec, frozenset(used), composition
        self.padding = spec.padding if padding is None else padding
        self._cache = CachedKernel()
        k, inputs = spec.kernel_size, spec.c_in // spec.groups
        width = spec.c_in if spec.groups <= 4 else 2 * spec.c_in
        for name in ("origin", "first", "second", "depthwise", "pointwise"):
            self.register_parameter(name, None)
        if "origin" in used:
            self.origin = kaiming(spec.c_out, inputs, k, slope, taps_last=True)
        if "chain" in used:
            self.first = nn.Parameter(torch.zeros(width, inputs, 1, 1))
            self.second = kaiming(spec.c_out, width // spec.groups, k, slope, taps_last=True)
        if "separable" in used:
            self.depthwise = kaiming(MULTIPLIER * spec.c_in, 1, k, slope)
            self.pointwise = kaiming(spec.c_out, MULTIPLIER * inputs, 1, slope)
        points = [kaiming(spec.c_out, inputs, 1, slope) for name in POINTS if name in used]
        self.points = nn.ParameterList(points)
        self.terms = nn.ModuleDict({name: Term(name) for name in COMPONENTS if name in used})
        self.scales = first_scales(scaling, spec.c_out, [first for name, first in COMPONENTS.items() if name in used])
        self.register_buffer("basis", basis(spec, self.used, like=next(self.parameters())), persistent=False)
        self.basis: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Make the basis anew where the parameters went: a float32 1/9 cast to float64 stays a float32 1/9."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.basis = basis(self.spec, self.used, like=next(self.parameters()))
        return self

    def weights(self) -> Weights:
        """The parameters as the composition takes them, scales as (terms, O)."""
        scales = next(self.parameters()).new_ones(1, 1) if self.scales is None else self.scales
        return Weights(
            groups=self.spec.groups,
            scales=scales.expand(len(self.used), self.spec.c_out),
            basis=self.basis,
            origin=self.origin,
            points=tuple(self.points),
            chain=_both(self.first, self.second),
            separable=_both(self.depthwise, self.pointwise),
        )

    def kernel(self, composition: str | None = None) -> Tensor:
        """W (O, C/g, k, k). Composed outside autocast: in bfloat16 it would be 1.6e-3 off before it is used."""
        compose = {"lean": lean, "plain": plain}[composition or self.composition]
        with no_autocast(self.basis.device):
            return compose(self.weights())

    def online(self, x_NCHW: Tensor) -> Tensor:
        """One convolution by the composed kernel."""
        return self._conv(x_NCHW, self._cache.get(self, self.kernel), self.spec.groups)

    def offline(self, x_NCHW: Tensor) -> Tensor:
        """Each branch a real operation on the feature map, its scale too."""
        return reduce(add, self._maps(x_NCHW))

    def _maps(self, x_NCHW: Tensor) -> Iterator[Tensor]:
        """What each branch makes of x, scaled; one at a time, so that no more than two maps need be there."""
        weights = self.weights()
        scales = weights.scales[:, :, None, None]
        for scale, term, evaluate in zip(scales, self.terms.values(), self._evaluations(weights), strict=True):
            yield term(partial(_scaled, scale, evaluate), x_NCHW)

    def _evaluations(self, weights: Weights) -> Iterator[Callable[[Tensor], Tensor]]:
        """Each branch as a function of the feature map, not scaled, in the order of the scales' rows."""
        spec = self.spec
        k, groups = spec.kernel_size, spec.groups
        if weights.origin is not None:
            origin = weights.origin.contiguous()
            yield lambda x: self._conv(x, origin, groups)
        for column, point in enumerate(weights.points):
            taps = self.basis[:, :, column].reshape(-1, 1, k, k)
            yield self._spread(point, taps)
        if weights.chain is not None:
            first, second = mixing(weights.chain[0], groups), weights.chain[1].contiguous()
            yield lambda x: self._conv(F.conv2d(x, first, groups=groups), second, groups)
        if weights.separable is not None:
            depthwise, pointwise = weights.separable
            yield lambda x: F.conv2d(self._conv(x, depthwise, spec.c_in), pointwise, groups=groups)

    def _spread(self, point: Tensor, taps: Tensor) -> Callable[[Tensor], Tensor]:
        spec = self.spec
        return lambda x: self._conv(F.conv2d(x, point, groups=spec.groups), taps, spec.c_out)

    def _conv(self, x_NCHW: Tensor, weight_OIHW: Tensor, groups: int) -> Tensor:
        spec = self.spec
        return F.conv2d(x_NCHW, weight_OIHW, None, spec.stride, self.padding, spec.dilation, groups)


class Term(nn.Module):
    """Runs one branch on features: a module, so that what the branch keeps for backward is known as its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.branch_name = name

    def forward(self, evaluate: Callable[[Tensor], Tensor], x_NCHW: Tensor) -> Tensor:
        return evaluate(x_NCHW)


def _scaled(scale: Tensor, evaluate: Callable[[Tensor], Tensor], x_NCHW: Tensor) -> Tensor:
    return scale * evaluate(x_NCHW)


def basis(spec: ConvSpec, used: Collection[str], like: Tensor) -> Tensor:
    """The fixed k x k taps of the `POINTS` that are used: average, prior, centre; (O, k * k, at most 3)."""
    k, c_out = spec.kernel_size, spec.c_out
    # made in float64, so on the CPU, since not every device has it: a float32 1/9 would stay one in a float64 model
    made = {"device": "meta" if like.is_meta else "cpu", "dtype": torch.float64}
    channel, tap = torch.arange(c_out, **made), torch.arange(k, **made)  # type: ignore[call-overload]
    down = channel < c_out / 2  # not rounded: an odd O gives half-integer frequencies across
    frequency = torch.where(down, channel + 1, channel + 1 - c_out / 2)
    wave = torch.cos(math.pi / k * frequency[:, None] * (tap + 0.5))
    prior = torch.where(down[:, None, None], wave[:, :, None], wave[:, None, :]).expand(-1, k, k)
    average = torch.full_like(prior, 1 / k**2)
    centre = torch.zeros_like(prior)
    centre[:, k // 2, k // 2] = 1
    taps = [pattern for name, pattern in zip(POINTS, (average, prior, centre), strict=True) if name in used]
    stacked = torch.stack(taps, dim=3) if taps else prior.new_empty(c_out, k, k, 0)
    return stacked.flatten(1, 2).to(like.dtype).to(like.device)


def kaiming(c_out: int, inputs: int, kernel_size: int, slope: float, taps_last: bool = False) -> nn.Parameter:
    """A fresh weight (O, I, k, k), uniform as in Kaiming for the leaky slope; stored channels-last on demand."""
    weight = torch.empty(c_out, inputs, kernel_size, kernel_size)
    if taps_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    nn.init.kaiming_uniform_(weight, a=slope)
    return nn.Parameter(weight)


def _both(one: Tensor | None, other: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if one is None or other is None else (one, other)


def first_scales(scaling: str, c_out: int, first: Sequence[float]) -> nn.Parameter | None:
    """A row for each of `first`, for every output channel or for all of them."""
    if scaling == "none":
        return None
    return nn.Parameter(torch.tensor(first)[:, None].repeat(1, c_out if scaling == "vector" else 1))
