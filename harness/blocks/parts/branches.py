"""The branches that blocks are made of: each a real operation on the feature map that can also say its kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import ConvSpec


class Branch(Protocol):
    """What `Parallel` sums: a module with a kernel no larger than the block's."""

    def __call__(self, x_NCHW: Tensor) -> Tensor: ...

    def kernel(self) -> Kernel: ...


def widen(x_NCHW: Tensor, rows: int, columns: int) -> Tensor:
    """x with so many zeros above and below, left and right; negative: so many pixels fewer."""
    return F.pad(x_NCHW, (columns, columns, rows, rows)) if rows or columns else x_NCHW


class ConvBN(nn.Module):
    """y = bn(W * x), W (c_out, c_in / groups, kh, kw); `taps` (kh, kw) odd, by default the spec's square.

    All taps share the centre of the spec's kernel: along a side where they are fewer they need less padding, and
    where the spec pads less than "same" they may read a crop of x.
    """

    def __init__(self, spec: ConvSpec, taps: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.groups = spec.groups
        taps = taps or (spec.kernel_size, spec.kernel_size)
        rows, columns = (spec.dilation * (size // 2) + spec.margin for size in taps)
        self.cropped = min(rows, 0), min(columns, 0)
        padding = max(rows, 0), max(columns, 0)
        self.conv = nn.Conv2d(spec.c_in, spec.c_out, taps, spec.stride, padding, spec.dilation, spec.groups, bias=False)
        self.bn = nn.BatchNorm2d(spec.c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(self.conv(widen(x_NCHW, *self.cropped)))
        return y_NCHW

    def kernel(self) -> Kernel:
        return algebra.fold(self.conv.weight, self.bn)


class IdentityBN(nn.Module):
    """y = bn(x): the kernel is the folded 1x1 identity. Zeros that a margin adds count in the batch's statistics."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.spec = spec
        self.bn = nn.BatchNorm2d(spec.c_out)
        self.like: Tensor
        self.register_buffer("like", torch.zeros(0), persistent=False)  # the dtype, whatever becomes of the norm

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(widen(x_NCHW, self.spec.margin, self.spec.margin))
        return y_NCHW

    def kernel(self) -> Kernel:
        return algebra.fold(algebra.identity(self.spec.c_in, self.spec.groups, self.like), self.bn)


class Point(nn.Module):
    """y = W * x + b without a batch norm: a 1x1 that reads what the centre tap reads; b only where asked for."""

    def __init__(self, spec: ConvSpec, bias: bool = False) -> None:
        super().__init__()
        self.cropped = min(spec.margin, 0)
        padding = max(spec.margin, 0)
        self.conv = nn.Conv2d(spec.c_in, spec.c_out, 1, spec.stride, padding, groups=spec.groups, bias=bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.conv(widen(x_NCHW, self.cropped, self.cropped))
        return y_NCHW

    def kernel(self) -> Kernel:
        weight, bias = self.conv.weight, self.conv.bias
        return Kernel(weight, weight.new_zeros(weight.shape[0]) if bias is None else bias)


class Skip(nn.Module):
    """y = x, as the 1x1 identity."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.spec = spec
        self.like: Tensor
        self.register_buffer("like", torch.zeros(0), persistent=False)  # the dtype: there is no weight that has it

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return widen(x_NCHW, self.spec.margin, self.spec.margin)

    def kernel(self) -> Kernel:
        weight = algebra.identity(self.spec.c_in, self.spec.groups, self.like)
        return Kernel(weight, weight.new_zeros(self.spec.c_out))


class Parallel(nn.ModuleList):
    """y = sum of the branches; kernels smaller than `kernel_size` sit at the centre of the sum's.

    Each branch has a name, as its paper calls it: what is counted by branch is told apart by `branch_name`.
    """

    def __init__(self, kernel_size: int, branches: Mapping[str, nn.Module]) -> None:
        super().__init__(branches.values())
        for name, branch in branches.items():
            branch.branch_name = name  # type: ignore[assignment]
        self.kernel_size = kernel_size

    def forward(self, x_NCHW: Tensor) -> Tensor:
        first, *others = self
        y_NCHW: Tensor = first(x_NCHW)
        for branch in others:
            y_NCHW = y_NCHW + branch(x_NCHW)
        return y_NCHW

    def kernel(self) -> Kernel:
        branches: Iterable[Branch] = self  # type: ignore[assignment]
        kernels = [branch.kernel() for branch in branches]
        return algebra.add(Kernel(algebra.embed(k.weight, self.kernel_size), k.bias) for k in kernels)


def over_parameterized(spec: ConvSpec, count: int) -> Parallel:
    """The sum of `count` k x k branches, the 1x1 and the identity, each with its batch norm."""
    branches: dict[str, nn.Module] = {f"k x k {i + 1}": ConvBN(spec) for i in range(count)}
    if spec.kernel_size > 1:
        branches["1x1"] = ConvBN(spec.resized(1))
    if spec.keeps_shape:
        branches["identity"] = IdentityBN(spec)
    return Parallel(spec.kernel_size, branches)


class PaddedBN(nn.Module):
    """bn(x) with `padding` more pixels around it that hold what the norm makes of a zero.

    With this rim, and not with zeros, a k x k convolution behind it folds exactly at the border. The rim is made of
    the *running* statistics and carries no gradient, in training too, as the DBB authors have it; the norm runs
    first, so they are the ones that this very forward has just updated.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.bn: nn.Module = nn.BatchNorm2d(channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(x_NCHW)
        if isinstance(self.bn, nn.Identity) or not self.padding:
            return widen(y_NCHW, self.padding, self.padding)
        assert isinstance(self.bn, nn.BatchNorm2d)
        with torch.no_grad():  # the rim is a constant of this step: nothing of it is to be kept for backward
            shift_C = algebra.norm_shift(self.bn).to(y_NCHW.dtype)
        padded_NCHW: Tensor = _Rim.apply(y_NCHW, shift_C, self.padding)
        return padded_NCHW


class _Rim(torch.autograd.Function):
    """x with `padding` pixels of `shift_C` around it: every pixel written once, and a view for the way back.

    F.pad writes zeros first, and filling slices in autograd's sight clones the whole gradient once per side.
    """

    @staticmethod
    def forward(x_NCHW: Tensor, shift_C: Tensor, padding: int) -> Tensor:
        n, c, height, width = x_NCHW.shape
        dense = torch.channels_last if _is_channels_last(x_NCHW) else torch.contiguous_format
        y_NCHW = torch.empty(
            (n, c, height + 2 * padding, width + 2 * padding),
            dtype=x_NCHW.dtype,
            device=x_NCHW.device,
            memory_format=dense,
        )
        inside = slice(padding, -padding)
        y_NCHW[:, :, inside, inside] = x_NCHW
        shift_CHW = shift_C[:, None, None]
        y_NCHW[:, :, :padding] = shift_CHW
        y_NCHW[:, :, -padding:] = shift_CHW
        y_NCHW[:, :, inside, :padding] = shift_CHW
        y_NCHW[:, :, inside, -padding:] = shift_CHW
        return y_NCHW

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.padding = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad_NCHW: Tensor) -> tuple[Tensor, None, None]:
        inside = slice(ctx.padding, -ctx.padding)
        return grad_NCHW[:, :, inside, inside], None, None


def _is_channels_last(x_NCHW: Tensor) -> bool:
    return x_NCHW.is_contiguous(memory_format=torch.channels_last) and not x_NCHW.is_contiguous()
