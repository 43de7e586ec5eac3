"""The kernel algebra: fold, embed, chain, stack, spread and sum. Written once; every block is written in it.

Kernels are (O, I, kh, kw) with O output channels and I = c_in / groups input channels of one group, as
`torch.nn.functional.conv2d` takes them; "same" cross-correlation, no flipping. Rows are group-major: group c owns
rows c*O/g .. (c+1)*O/g. Everything is differentiable, keeps the dtype and device of its arguments and makes its
constants with `new_*`, so that fake and meta tensors go through. Source: Ding et al., DBB, CVPR 2021,
arXiv:2103.13425, section 3.2 (transforms I to VI, here T1 to T6), each in its grouped form.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm


class Kernel(NamedTuple):
    """One convolution: `weight` (O, I, kh, kw) and `bias` (O,)."""

    weight: Tensor
    bias: Tensor


def norm_scale(norm: BatchNorm) -> Tensor:
    """What an eval-mode batch norm multiplies each channel by: gamma / sqrt(variance + eps), (O,)."""
    if norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded")  # blocks always track them
    return norm.weight * torch.rsqrt(norm.running_var + norm.eps)


def norm_shift(norm: BatchNorm) -> Tensor:
    """What an eval-mode batch norm makes of a zero: beta - mean * gamma / sqrt(variance + eps), (O,)."""
    if norm.running_mean is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    return norm.bias - norm.running_mean * norm_scale(norm)


def fold(weight_OIHW: Tensor, norm: nn.Module) -> Kernel:
    """T1: a convolution without bias and the batch norm (or nothing: nn.Identity) behind it, by running statistics."""
    if isinstance(norm, nn.Identity):
        return Kernel(weight_OIHW, weight_OIHW.new_zeros(weight_OIHW.shape[0]))
    assert isinstance(norm, BatchNorm)
    return Kernel(weight_OIHW * norm_scale(norm).reshape(-1, 1, 1, 1), norm_shift(norm))


def fold_biased(kernel: Kernel, norm: nn.Module) -> Kernel:
    """T1 where the convolution has a bias, or is a sum of branches: the batch norm (or nothing) behind all of it."""
    if isinstance(norm, nn.Identity):
        return kernel
    assert isinstance(norm, BatchNorm)
    weight, shift = fold(kernel.weight, norm)
    return Kernel(weight, kernel.bias * norm_scale(norm) + shift)


def add(kernels: Iterable[Kernel]) -> Kernel:
    """T2: parallel branches of equal shape are one kernel, their sum."""
    first, *others = kernels
    weight, bias = first
    for other in others:
        weight, bias = weight + other.weight, bias + other.bias
    return Kernel(weight, bias)


def chain(first_TIHW: Tensor, second_OTHW: Tensor, groups: int) -> Tensor:
    """T3 and T4: a 1x1 (T, C/g, 1, 1), then a kxk (O, T/g, k, k), both in `groups`: one kernel (O, C/g, k, k)."""
    c_out, width, rows, columns = second_OTHW.shape
    taps_last = second_OTHW.permute(0, 2, 3, 1).reshape(groups, -1, width)
    mixed = torch.bmm(taps_last, first_TIHW.reshape(groups, width, -1))  # one product for all groups
    return mixed.reshape(c_out, rows, columns, -1).permute(0, 3, 1, 2).contiguous()


def chain_folded(first: Kernel, second: Kernel, groups: int) -> Kernel:
    """T3 with biases. Exact at the rim only if the first stage's *output* is padded with its own bias."""
    return Kernel(chain(first.weight, second.weight, groups), second.bias + carry(first.bias, second.weight, groups))


def concat(first: Tensor, second: Tensor, groups: int, axis: int = 0) -> Tensor:
    """T4: side by side along the outputs, group by group: (gA, ...), (gB, ...) -> (g(A + B), ...).

    axis: that of the outputs, 0 for kernels and 1 for the feature maps that they make.
    """
    pieces = zip(first.chunk(groups, axis), second.chunk(groups, axis), strict=True)
    return torch.cat([piece for pair in pieces for piece in pair], axis)


def stack(first_TIHW: Tensor, second_OTHW: Tensor, groups: int) -> Tensor:
    """Two k x k, nothing padded between them: one kernel (O, C/g, kh + kh' - 1, kw + kw' - 1); not of the six.

    Cross-correlations in a row correlate with the *convolution* of their kernels: hence the flip. Without it the
    result is another linear function, and no small error.
    """
    rows, columns = second_OTHW.shape[2:]
    flipped = second_OTHW.flip(2, 3)
    # The first kernel's inputs are the batch, its outputs the channels that the second one reads, in `groups`.
    return F.conv2d(first_TIHW.transpose(0, 1), flipped, None, 1, (rows - 1, columns - 1), 1, groups).transpose(0, 1)


def project(first_TIHW: Tensor, second_OT: Tensor, groups: int) -> Tensor:
    """A kxk (T, C/g, k, k), then a 1x1 (O, T/g, 1, 1), both in `groups`: one kernel (O, C/g, k, k); not of the six."""
    width = second_OT.shape[1]
    mixed = torch.bmm(second_OT.reshape(groups, -1, width), first_TIHW.reshape(groups, width, -1))
    return mixed.reshape(-1, *first_TIHW.shape[1:])


def series(first_TIHW: Tensor, second_OTHW: Tensor, groups: int) -> Tensor:
    """Two kernels of any odd sizes, nothing padded between them: one of kh + kh' - 1 by kw + kw' - 1."""
    if second_OTHW.shape[2:] == (1, 1):
        return project(first_TIHW, second_OTHW, groups)
    if first_TIHW.shape[2:] == (1, 1):
        return chain(first_TIHW, second_OTHW, groups)
    return stack(first_TIHW, second_OTHW, groups)


def carry(bias_T: Tensor, second_OTHW: Tensor, groups: int) -> Tensor:
    """What a bias in front of a convolution adds behind it, (O,), where no zeros are padded between the two."""
    width = second_OTHW.shape[1]
    reach = second_OTHW.sum((2, 3)).reshape(groups, -1, width)
    return torch.bmm(reach, bias_T.reshape(groups, width, 1)).flatten()


def spread(depthwise_MIHW: Tensor, pointwise_OM: Tensor, groups: int, multiplier: int) -> Tensor:
    """A depthwise kxk (m*C, 1, k, k), m outputs a channel, then a 1x1 (O, m*C/g, 1, 1): one kernel (O, C/g, k, k)."""
    c_out, inputs = pointwise_OM.shape[0], pointwise_OM.shape[1] // multiplier
    taps = depthwise_MIHW.reshape(groups, inputs, multiplier, *depthwise_MIHW.shape[2:])
    mix = pointwise_OM.reshape(groups, c_out // groups, inputs, multiplier)
    return torch.einsum("goit,githw->goihw", mix, taps).flatten(0, 1)


def embed(weight_OIHW: Tensor, kernel_size: int) -> Tensor:
    """T6: a smaller odd kernel (1x1, kx1, 1xk) in the centre of a k x k one, zeros around it."""
    rows, columns = (kernel_size - size for size in weight_OIHW.shape[2:])
    if rows == columns == 0:
        return weight_OIHW
    return F.pad(weight_OIHW, (columns // 2, columns // 2, rows // 2, rows // 2))


def dilate(weight_OIHW: Tensor, dilation: int) -> Tensor:
    """The same function without dilation: taps `dilation` apart, zeros between, r (k - 1) + 1 rows and columns."""
    rows, columns = (dilation * (size - 1) + 1 for size in weight_OIHW.shape[2:])
    dilated = weight_OIHW.new_zeros(*weight_OIHW.shape[:2], rows, columns)
    dilated[:, :, ::dilation, ::dilation] = weight_OIHW
    return dilated


def identity(channels: int, groups: int, like: Tensor, width: int | None = None) -> Tensor:
    """The 1x1 kernel (width, C/g, 1, 1) that copies: 1 at [t, t mod C/g], `width` (default C) a multiple of C."""
    inputs = channels // groups
    one = like.new_ones(inputs).diag()
    return one.repeat((width or channels) // inputs, 1)[:, :, None, None]


def dirac(c_in: int, c_out: int, groups: int, like: Tensor) -> Tensor:
    """The 1x1 kernel (O, C/g, 1, 1) that copies, in each group, as many channels as it has both ways; the rest is 0."""
    inputs, outputs = c_in // groups, c_out // groups
    one = F.pad(like.new_ones(min(inputs, outputs)).diag(), (0, max(inputs - outputs, 0), 0, max(outputs - inputs, 0)))
    return one.repeat(groups, 1)[:, :, None, None]


def average(channels: int, groups: int, kernel_size: int, like: Tensor) -> Tensor:
    """T5: average pooling as a kernel (O, O/g, k, k), made in the dtype of `like`: a float32 1/9 costs 1e-9."""
    return identity(channels, groups, like).expand(-1, -1, kernel_size, kernel_size) / kernel_size**2
