"""RMNet's reserve and merge: a residual unit while training, two plain convolutions in a row once fused.

    train   y = bn2(W2 * relu(bn1(W1 * x))) + S(x)      S(x) = x, or bn(W0 * x) where x and y differ in shape
    fused   y = M * act(R * x + r) + b                  reserve, then merge

    R = [I, fold(W1)], r = [0, fold(b1)]                c_in copied channels, then the c_out that W1 makes
    M = [embed(fold(W0)) or I, fold(W2)]                the same channels added up

Both convolutions are k x k with the unit's groups, in which each group has its copied channels first, and dilation;
the stride and any margin are the first one's, and so the copy's. `carry` is what act does to the copied channels:

    relu    act = relu. The fused form needs x >= 0, as it is behind a ReLU: it refuses a first batch that is not.
    prelu   act = PReLU, slope 1 on the copied channels and 0 on the others: exact for any x.

The ReLU that a residual unit ends in is left to the network. Not linear, so there is no online evaluation.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Meng et al., RMNet, 2021, arXiv:2111.00687; as in the authors' code.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.declared import KERNEL_SIZES, NON_NEGATIVE
from harness.blocks.parts.branches import ConvBN, widen
from harness.errors import Unsupported


@BLOCKS.register("rm")
class RM(FusableBlock):
    paper = "Meng et al., RMNet: Equivalently Removing Residual Connection from Networks, 2021, arXiv:2111.00687"
    kernel_sizes = KERNEL_SIZES[1:]
    no_sister = "a ReLU stands between its convolutions: they cannot be composed, whatever norms they have"
    needs: str | None = NON_NEGATIVE
    without_needs = "carry", "prelu"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[
            Literal["offline"], "a ReLU stands between the convolutions: nothing to compose"
        ] = "offline",
        carry: Annotated[
            Literal["relu", "prelu"],
            "activation that the copied input passes in the fused form: ReLU, which needs an input that is not "
            "negative, or PReLU with slopes that let any input pass",
        ] = "relu",
    ) -> None:
        super().__init__(spec, reparam=reparam, carry=carry)
        self.first = ConvBN(spec)
        self.second = ConvBN(second_place(spec, spec.c_out))
        self.shortcut = None if spec.keeps_shape else ConvBN(spec.resized(1))
        self.carry = carry
        if carry == "prelu":
            self.needs = None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.second(F.relu(self.first(x_NCHW)))
        margin = self.spec.margin
        return y_NCHW + (widen(x_NCHW, margin, margin) if self.shortcut is None else self.shortcut(x_NCHW))

    @property
    def window(self) -> ConvSpec:
        """Both convolutions together: the second reads k x k outputs of the first, which are a stride apart."""
        s, reach = self.spec, self.spec.stride * (self.spec.kernel_size - 1)
        return replace(s, kernel_size=s.kernel_size + reach).padded(s.padding + s.dilation * reach // 2)

    def fused(self) -> nn.Sequential:
        """What this unit computes in eval mode, as new modules: two convolutions with the activation between them.

        Each is made as the base class makes its one. With carry relu a check stands in front, `NonNegative`.
        """
        guarded = self.carry == "relu"
        parts: dict[str, nn.Module] = {"input": NonNegative()} if guarded else {}
        parts["reserve"] = Reserve(self).fused()
        parts["act"] = nn.ReLU() if guarded else _prelu(self.spec, self.first.conv.weight)
        parts["merge"] = Merge(self).fused()
        return nn.Sequential(OrderedDict(parts)).train(self.training)


class Reserve(FusableBlock):
    """R and r of a unit, only to be folded."""

    def __init__(self, unit: RM) -> None:
        super().__init__(replace(unit.spec, c_out=unit.spec.c_in + unit.spec.c_out))
        self.unit = unit

    def kernel(self) -> Kernel:
        s, (weight, bias) = self.spec, self.unit.first.kernel()
        copy = algebra.embed(algebra.identity(s.c_in, s.groups, weight), s.kernel_size)
        return Kernel(algebra.concat(copy, weight, s.groups), algebra.concat(bias.new_zeros(s.c_in), bias, s.groups))


class Merge(FusableBlock):
    """M and b of a unit, only to be folded."""

    def __init__(self, unit: RM) -> None:
        super().__init__(second_place(unit.spec, unit.spec.c_in + unit.spec.c_out))
        self.unit = unit

    def kernel(self) -> Kernel:
        s, (weight, bias) = self.unit.spec, self.unit.second.kernel()
        shortcut = Kernel(algebra.identity(s.c_in, s.groups, weight), bias.new_zeros(s.c_out))
        if self.unit.shortcut is not None:
            shortcut = self.unit.shortcut.kernel()
        added = algebra.embed(shortcut.weight, s.kernel_size)
        return Kernel(torch.cat([added, weight], 1), shortcut.bias + bias)


class NonNegative(nn.Module):
    """Passes x on; the first batch with values must have none below zero.

    Only that one is looked at, so that what is timed later is the convolutions alone; what is compiled, exported or
    run on fake or meta tensors is not looked at. Raises Unsupported.
    """

    def __init__(self) -> None:
        super().__init__()
        self.looked = False

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.looked and _has_values(x_NCHW):
            if bool((x_NCHW < 0).any()):
                raise Unsupported(
                    "the fused form of block rm carries its input through a ReLU, and this input has negative values",
                    remedy="use carry: prelu, or put the block behind a ReLU",
                )
            self.looked = True
        return x_NCHW


def second_place(spec: ConvSpec, c_in: int) -> ConvSpec:
    """Where the second convolution stands: stride and margin have been the first one's."""
    return replace(spec, c_in=c_in, stride=1, margin=0)


def _has_values(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return not (isinstance(x, FakeTensor) or x.is_meta)


def _prelu(spec: ConvSpec, like: Tensor) -> nn.PReLU:
    """Slope 1 on the copied channels, 0 on the others; slopes that can be trained, as all of a fused form."""
    with torch.inference_mode(False):
        act = nn.PReLU(spec.c_in + spec.c_out, device="meta")
        ones, zeros = like.new_ones(spec.c_in), like.new_zeros(spec.c_out)
        act.weight = nn.Parameter(algebra.concat(ones, zeros, spec.groups))
    return act
