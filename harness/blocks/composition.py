"""OREPA's kernel from its parameters, twice: the plain sum of terms, and the same by hand, fast.

With K = k * k taps, W0 (O, C/g, k, k), A (T, C/g) = identity + W1, W2 (O, T/g, k, k), point weights w_j (O, C/g), the
constant basis B (O, K, points), depthwise D (8C, 1, k, k), pointwise P (O, 8C/g, 1, 1) and scales v (terms, O):

    kernel = v_0 W0 + sum_j v_j w_j B_j + v_-2 (W2 A) + v_-1 (P D),   (O, C/g, k, k)

`plain` writes that down, any autograd can differentiate it, it is the oracle. `Composition` computes the same with
three large GEMMs a step and what cannot be avoided around them: W0 and W2 are stored channels-last, which makes
(O, K, C/g) a view of them; only parameters are saved; gradients come out in the layout of their parameter. All
temporaries are ordinary tensors that die on return: real and fake steps allocate the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from harness.blocks import algebra

MULTIPLIER = 8
"""Outputs of the depthwise stage for each input channel, as the authors have it."""

ORIGIN, CHAIN, SEPARABLE = 0, -2, -1
"""Rows of the scales; those between belong to the points, in the basis's order."""
POINTS = slice(1, -2)


class Weights(NamedTuple):
    """What a kernel is composed of: in the module docstring's order v, W0, W1, W2, D, P, B and the w_j.

    Scales are (terms, O); points (O, C/g, 1, 1), in the order of the basis's last axis.
    """

    scales: Tensor
    origin: Tensor
    first: Tensor
    second: Tensor
    depthwise: Tensor
    pointwise: Tensor
    basis: Tensor
    points: tuple[Tensor, ...]


def mixing(first_TI: Tensor, groups: int) -> Tensor:
    """A = I + W1, (T, C/g, 1, 1): each group's rows repeat its identity T/C times."""
    width, inputs = first_TI.shape[:2]
    return first_TI + algebra.identity(inputs * groups, groups, first_TI, width)


def plain(weights: Weights, groups: int) -> Tensor:
    """The kernel (O, C/g, k, k) as the sum of its terms, differentiable any number of times."""
    v = weights.scales[:, :, None, None, None]
    k = weights.origin.shape[-1]
    kernel = v[ORIGIN] * weights.origin
    for column, (scale, point) in enumerate(zip(v[POINTS], weights.points, strict=True)):
        kernel = kernel + scale * point * weights.basis[:, :, column].reshape(-1, 1, k, k)
    kernel = kernel + v[CHAIN] * algebra.chain(mixing(weights.first, groups), weights.second, groups)
    return kernel + v[SEPARABLE] * algebra.spread(weights.depthwise, weights.pointwise, groups, MULTIPLIER)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off where the device has it (meta has none, and says so by raising)."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def compose(weights: Weights, groups: int) -> Tensor:
    """The kernel (O, C/g, k, k), contiguous; the same numbers as `plain` up to rounding."""
    if torch.compiler.is_exporting():
        return plain(weights, groups)  # an exported graph wants operations, not a function with a backward
    *tensors, points = weights
    kernel: Tensor = Composition.apply(groups, *tensors, *points)
    return kernel


class _Views(NamedTuple):
    """The parameters as the matrices that the GEMMs want; views, for parameters in their own layout."""

    first: Tensor  # A (g, T/g, C/g)
    second: Tensor  # W2 (g, O/g * K, T/g)
    origin: Tensor  # W0 (O, K, C/g)
    points: Tensor  # (points, O, C/g)
    pointwise: Tensor  # P (C, O/g, 8)
    depthwise: Tensor  # D (C, 8, K)


def _views(weights: Weights, groups: int) -> _Views:
    c_out, inputs = weights.origin.shape[:2]
    pointwise = weights.pointwise.reshape(groups, c_out // groups, inputs, MULTIPLIER).transpose(1, 2)
    return _Views(
        first=mixing(weights.first, groups).reshape(groups, -1, inputs),
        second=_taps_last(weights.second).reshape(groups, -1, weights.second.shape[1]),
        origin=_taps_last(weights.origin),
        points=torch.stack([point.reshape(c_out, inputs) for point in weights.points]),
        pointwise=pointwise.reshape(groups * inputs, c_out // groups, MULTIPLIER),
        depthwise=weights.depthwise.reshape(groups * inputs, MULTIPLIER, -1),
    )


def _taps_last(weight_OIHW: Tensor) -> Tensor:
    """(O, K, I): free for a channels-last weight, a copy (never a wrong result) for any other."""
    c_out, inputs = weight_OIHW.shape[:2]
    return weight_OIHW.permute(0, 2, 3, 1).reshape(c_out, -1, inputs)


def _forward(weights: Weights, groups: int) -> Tensor:
    c_out, inputs, k, _ = weights.origin.shape
    views, v = _views(weights, groups), weights.scales[:, :, None]
    total_OKI = torch.bmm(views.second, views.first).view(c_out, k * k, inputs)
    total_OKI.mul_(v[CHAIN].unsqueeze(-1))
    total_OKI.addcmul_(views.origin, v[ORIGIN].unsqueeze(-1))
    scaled_OPI = (views.points * v[POINTS]).transpose(0, 1)
    total_OKI.baddbmm_(weights.basis, scaled_OPI)
    spread = torch.bmm(views.pointwise, views.depthwise).view(groups, inputs, c_out // groups, k * k)
    kernel = weights.origin.new_empty(c_out, inputs, k, k)
    # The only pass that permutes, fused with the last scale and addition.
    torch.addcmul(
        total_OKI.transpose(1, 2).view(groups, -1, inputs, k * k),
        spread.transpose(1, 2),
        weights.scales[SEPARABLE].view(groups, -1, 1, 1),
        out=kernel.view(groups, c_out // groups, inputs, k * k),
    )
    return kernel


def _backward(weights: Weights, groups: int, grad_OIHW: Tensor) -> Sequence[Tensor | None]:
    """Gradients in the order of `Weights` without the basis, each in its parameter's layout."""
    c_out, inputs, k, _ = weights.origin.shape
    views, scales = _views(weights, groups), weights.scales
    d_scales = torch.empty_like(scales)
    g_OIK = grad_OIHW.reshape(c_out, inputs, k * k)
    h_OKI = g_OIK.transpose(1, 2).clone(memory_format=torch.contiguous_format)  # a copy for k = 1 too: it is scaled

    s_POI = torch.bmm(weights.basis.transpose(1, 2), h_OKI).transpose(0, 1)
    d_scales[POINTS] = (s_POI * views.points).sum(2)
    d_points = [(s_OI * scale[:, None])[:, :, None, None] for s_OI, scale in zip(s_POI, scales[POINTS], strict=True)]

    d_origin = h_OKI * views.origin
    d_scales[ORIGIN] = d_origin.sum((1, 2))
    torch.mul(h_OKI, scales[ORIGIN][:, None, None], out=d_origin)  # memory that is there, not new pages

    # dv through U needs no stored product and stays right when v is zero.
    u = torch.bmm(h_OKI.view(groups, -1, inputs), views.first.transpose(1, 2))
    d_scales[CHAIN] = (u * views.second).view(c_out, -1).sum(1)
    d_second = u.view(c_out, k * k, -1).mul_(scales[CHAIN][:, None, None])
    h_OKI.mul_(scales[CHAIN][:, None, None])
    d_first = torch.bmm(views.second.transpose(1, 2), h_OKI.view(groups, -1, inputs))

    d_pointwise, d_depthwise, d_scales[SEPARABLE] = _backward_separable(views, scales[SEPARABLE], groups, g_OIK)
    return [
        d_scales,
        d_origin.view(c_out, k, k, inputs).permute(0, 3, 1, 2),
        d_first.reshape(weights.first.shape),
        d_second.view(c_out, k, k, -1).permute(0, 3, 1, 2),
        d_depthwise.view(weights.depthwise.shape),
        d_pointwise.reshape(weights.pointwise.shape),
        *d_points,
    ]


def _backward_separable(views: _Views, scale_O: Tensor, groups: int, g_OIK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of P (g, O/g, C/g, 8), D (C, 8, K) and of their scale (O,)."""
    c_out, inputs, taps = g_OIK.shape
    g_COK = g_OIK.view(groups, -1, inputs, taps).transpose(1, 2).reshape(groups * inputs, -1, taps)
    scale = scale_O.view(groups, 1, -1, 1).expand(-1, inputs, -1, -1).reshape(groups * inputs, -1, 1)
    r_COM = torch.bmm(g_COK, views.depthwise.transpose(1, 2))
    d_scale = (r_COM * views.pointwise).view(groups, inputs, -1, MULTIPLIER).sum((1, 3)).view(c_out)
    d_depthwise = torch.bmm((views.pointwise * scale).transpose(1, 2), g_COK)
    d_pointwise = r_COM.mul_(scale).view(groups, inputs, -1, MULTIPLIER).transpose(1, 2)
    return d_pointwise, d_depthwise, d_scale


class Composition(torch.autograd.Function):
    """`plain`, differentiated by hand. Under `create_graph` the gradients are those of `plain` itself."""

    @staticmethod
    def forward(ctx: FunctionCtx, groups: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.groups = groups  # type: ignore[attr-defined]
        return _forward(_weights(tensors), groups)

    @staticmethod
    def backward(ctx: Any, grad_OIHW: Tensor) -> tuple[Tensor | None, ...]:
        tensors: Sequence[Tensor] = ctx.saved_tensors
        weights = _weights(tensors)
        differentiate = _differentiable if torch.is_grad_enabled() else _backward
        with no_autocast(grad_OIHW.device):  # a backward called inside autocast finds it switched on
            gradients = differentiate(weights, ctx.groups, grad_OIHW)
        return (None, *gradients[:6], None, *gradients[6:])


def _weights(tensors: Sequence[Tensor]) -> Weights:
    scales, origin, first, second, depthwise, pointwise, basis, *points = tensors
    return Weights(scales, origin, first, second, depthwise, pointwise, basis, tuple(points))


def _differentiable(weights: Weights, groups: int, grad_OIHW: Tensor) -> Sequence[Tensor | None]:
    *tensors, _, points = weights
    wanted = [tensor for tensor in (*tensors, *points) if tensor.requires_grad]
    found = iter(torch.autograd.grad(plain(weights, groups), wanted, grad_OIHW, create_graph=True))
    return [next(found) if tensor.requires_grad else None for tensor in (*tensors, *points)]
