"""straightforward.py for the blocks that are one composed kernel while they train: a linear part, mostly a norm.

Each linear part is written down twice: `forward` has its branches on the feature map, `kernel` makes each of them a
kernel (c, c, k, k), one einsum a term as in the authors' code of OREPA, and adds them up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import add

import torch
from straightforward import IdentityBased, conv_bn
from straightforward import Sum as FeatureSum
from torch import Tensor, nn
from torch.nn import functional as F

Evaluated = Callable[[nn.Module], nn.Module]
"""A linear part as it is (on features), or inside `Composed`."""


class Composed(nn.Module):
    """One convolution by the kernel of the linear part, which is made in every step."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.linear.kernel(), self.linear.bias(), padding="same")


class Linear(nn.Module):
    def kernel(self) -> Tensor:
        raise NotImplementedError

    def bias(self) -> Tensor | None:
        return None


def weight(c_out: int, c_in: int, k: int = 1) -> nn.Parameter:
    return nn.Parameter(nn.init.kaiming_uniform_(torch.empty(c_out, c_in, k, k)))


def centred(point: Tensor, k: int) -> Tensor:
    return F.pad(point, [k // 2] * 4)


class Collapsible(Linear):
    """SESR's: k x k to 256 channels, then 1x1, both with a bias."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(c, 256, k, padding=k // 2), nn.Conv2d(256, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def kernel(self) -> Tensor:
        return torch.einsum("om,mihw->oihw", self.second.weight.flatten(1), self.first.weight)

    def bias(self) -> Tensor:
        return self.second.weight.flatten(1) @ self.first.bias + self.second.bias


class Dirac(Linear):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.weight = weight(c, c, k)
        self.alpha, self.beta = nn.Parameter(torch.ones(c, 1, 1)), nn.Parameter(torch.full((c, 1, 1), 0.1))
        self.register_buffer("delta", centred(torch.eye(c)[:, :, None, None], k))

    def unit(self) -> Tensor:
        return F.normalize(self.weight.flatten(1)).view_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x + self.beta * F.conv2d(x, self.unit(), padding="same")

    def kernel(self) -> Tensor:
        return self.alpha[:, None] * self.delta + self.beta[:, None] * self.unit()


class DOConv(Linear):
    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.k, taps = k, k * k
        self.weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(c, c, taps), a=math.sqrt(5)))
        self.depthwise = nn.Parameter(torch.zeros(c, taps, taps))
        self.register_buffer("diagonal", torch.eye(taps))

    def forward(self, x: Tensor) -> Tensor:
        c, k = x.shape[1], self.k
        taps = (self.depthwise + self.diagonal).transpose(1, 2).reshape(-1, 1, k, k)
        return F.conv2d(F.conv2d(x, taps, padding="same", groups=c), self.weight.reshape(c, -1, 1, 1))

    def kernel(self) -> Tensor:
        product = torch.einsum("ims,ois->oim", self.depthwise + self.diagonal, self.weight)
        return product.unflatten(2, (self.k, self.k))


class Terms(Linear):
    """OREPA's branches without the norm: six, or without `point` OREPA-VGG's five.

    padding: k // 2, or 0 where the input brings its own zeros.
    """

    def __init__(self, c: int, k: int, point: bool = True, padding: int | None = None) -> None:
        super().__init__()
        self.k, self.padding = k, k // 2 if padding is None else padding
        self.origin, self.first, self.second = weight(c, c, k), nn.Parameter(torch.zeros(c, c, 1, 1)), weight(c, c, k)
        self.depthwise, self.pointwise = weight(8 * c, 1, k), weight(c, 8 * c)
        self.scales = nn.Parameter(torch.full((6 if point else 5, c), 0.5))
        self.average, self.prior = weight(c, c), weight(c, c)
        self.point = weight(c, c) if point else None
        self.register_buffer("identity", torch.eye(c)[:, :, None, None])
        self.register_buffer("frequencies", frequencies(c, k))

    def forward(self, x: Tensor) -> Tensor:
        c, k, p = x.shape[1], self.k, self.padding
        terms = [
            F.conv2d(x, self.origin, padding=p),
            F.avg_pool2d(F.conv2d(x, self.average), k, 1, p),
            F.conv2d(F.conv2d(x, self.prior), self.frequencies[:, None], padding=p, groups=c),
        ]
        if self.point is not None:
            rim = k // 2 - p
            terms.append(F.conv2d(x[:, :, rim:-rim, rim:-rim] if rim else x, self.point))
        terms.append(F.conv2d(F.conv2d(x, self.first + self.identity), self.second, padding=p))
        terms.append(F.conv2d(F.conv2d(x, self.depthwise, padding=p, groups=c), self.pointwise))
        return reduce(add, (v * term for v, term in zip(self.scales[:, :, None, None], terms, strict=True)))

    def kernel(self) -> Tensor:
        c, k = self.origin.shape[0], self.k
        mean = self.average.new_full((k, k), 1 / k**2)
        terms = [
            self.origin,
            torch.einsum("oi,hw->oihw", self.average.flatten(1), mean),
            torch.einsum("oi,ohw->oihw", self.prior.flatten(1), self.frequencies),
        ]
        if self.point is not None:
            terms.append(centred(self.point, k))
        terms.append(torch.einsum("ti,othw->oihw", (self.first + self.identity).flatten(1), self.second))
        taps, mix = self.depthwise.reshape(c, 8, k, k), self.pointwise.reshape(c, c, 8)
        terms.append(torch.einsum("imhw,oim->oihw", taps, mix))
        return reduce(add, (v * term for v, term in zip(self.scales[:, :, None, None, None], terms, strict=True)))


def frequencies(c: int, k: int) -> Tensor:
    """(c, k, k) in float64: down the rows in the first half of the channels, along the columns in the second."""
    patterns = torch.empty(c, k, k, dtype=torch.float64)
    for o in range(c):
        for row in range(k):
            for column in range(k):
                turns = (row + 0.5) * (o + 1) if o < c / 2 else (column + 0.5) * (o + 1 - c / 2)
                patterns[o, row, column] = math.cos(math.pi * turns / k)
    return patterns


class Stack(Linear):
    """OREPA's stem: 3x3 stages in a row, all the zeros in front of them."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.padding = k // 2
        self.stages = nn.Sequential(*(Terms(c, 3, padding=0) for _ in range(k // 2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(F.pad(x, [self.padding] * 4))

    def kernel(self) -> Tensor:
        first, *later = (stage.kernel() for stage in self.stages)
        squeezed = first.transpose(0, 1)
        for stage in later:
            squeezed = F.conv2d(squeezed, stage.flip(2, 3), padding=2)
        return squeezed.transpose(0, 1)


class Pair(Linear):
    """OREPA's 1x1: itself and two 1x1 in a row."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        assert k == 1
        self.origin, self.first, self.second = weight(c, c), weight(c, c), weight(c, c)
        self.scales = nn.Parameter(torch.full((2, c), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.scales[:, :, None, None]
        return one * F.conv2d(x, self.origin) + two * F.conv2d(F.conv2d(x, self.first), self.second)

    def kernel(self) -> Tensor:
        one, two = self.scales[:, :, None, None, None]
        chained = torch.einsum("ot,ti->oi", self.second.flatten(1), self.first.flatten(1))
        return one * self.origin + two * chained[:, :, None, None]


class Scaled(nn.Module):
    def __init__(self, c: int, branch: nn.Module) -> None:
        super().__init__()
        self.scale, self.branch = nn.Parameter(torch.ones(c, 1, 1)), branch

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.branch(x)


class ScaledDBB(Linear):
    """DBB's branches without their norms, a scale behind each."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.k, same = k, {"padding": k // 2, "bias": False}
        chain = nn.Sequential(IdentityBased(c), nn.Conv2d(c, c, k, **same))
        average = nn.Sequential(nn.Conv2d(c, c, 1, bias=False), nn.AvgPool2d(k, 1, k // 2))
        branches = nn.Conv2d(c, c, k, **same), nn.Conv2d(c, c, 1, bias=False), chain, average
        self.branches = FeatureSum(Scaled(c, branch) for branch in branches)

    def forward(self, x: Tensor) -> Tensor:
        return self.branches(x)

    def kernel(self) -> Tensor:
        origin, point, (first, second), (averaged, _) = (scaled.branch for scaled in self.branches)
        mean = averaged.weight.new_full((self.k, self.k), 1 / self.k**2)
        terms = (
            origin.weight,
            centred(point.weight, self.k),
            torch.einsum("ti,othw->oihw", (first.weight + first.identity).flatten(1), second.weight),
            torch.einsum("oi,hw->oihw", averaged.weight.flatten(1), mean),
        )
        return reduce(add, (s.scale[:, None] * term for s, term in zip(self.branches, terms, strict=True)))


def orepa_vgg(c: int, k: int, evaluated: Evaluated) -> nn.Module:
    composed = nn.Sequential(evaluated(Terms(c, k, point=False)), nn.BatchNorm2d(c))
    return FeatureSum([composed, conv_bn(c, c, 1), nn.BatchNorm2d(c)])


def with_norm(linear: Callable[[int, int], nn.Module]) -> Callable[[int, int, Evaluated], nn.Module]:
    return lambda c, k, evaluated: nn.Sequential(evaluated(linear(c, k)), nn.BatchNorm2d(c))


BOTH: dict[str, Callable[[int, int, Evaluated], nn.Module]] = {
    "clb": lambda c, k, evaluated: evaluated(Collapsible(c, k)),
    "dirac": with_norm(Dirac),
    "doconv": with_norm(DOConv),
    "linearized": with_norm(ScaledDBB),
    "orepa": with_norm(Terms),
    "orepa_1x1": with_norm(Pair),
    "orepa_stem": with_norm(Stack),
    "orepa_vgg": orepa_vgg,
}
