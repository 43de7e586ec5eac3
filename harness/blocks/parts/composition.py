"""OREPA's kernel from its parameters, twice: the plain sum of terms, and the same by hand, fast and lean.

With K = k * k taps, W0 (O, C/g, k, k), A (T, C/g) = identity + W1, W2 (O, T/g, k, k), point weights w_j (O, C/g), the
constant basis B (O, K, points), depthwise D (8C, 1, k, k), pointwise P (O, 8C/g, 1, 1) and scales v (terms, O):

    kernel = v_0 W0 + sum_j v_j w_j B_j + v_-2 (W2 A) + v_-1 (P D),   (O, C/g, k, k)

A term that is left out has no parameters, no row of v and no column of B.

`plain` writes that down as the authors do: each term is made a whole kernel, then scaled, then added. Any autograd
can differentiate it, it is the oracle; and autograd keeps each whole term but W0 for the gradient of its scale.
`Composition` keeps the parameters and nothing else, and computes the same with three large GEMMs a step and what
cannot be avoided around them: W0 and W2 are stored channels-last, which makes (O, K, C/g) a view of them; gradients
come out in the layout of their parameter. All temporaries are ordinary tensors that die on return: real and fake
steps allocate the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from math import isqrt
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from harness.blocks import algebra

MULTIPLIER = 8
"""Outputs of the depthwise stage for each input channel, as the authors have it."""

Flat = list[Tensor | None]


class Rows(NamedTuple):
    """The scales (terms, O) by term: views (rows, O) of one row, of none where the term is left out; of one a point."""

    origin: Tensor
    points: Tensor
    chain: Tensor
    separable: Tensor


class Weights(NamedTuple):
    """What a kernel is composed of, in the module docstring's letters; None (no points) for a term left out.

    Points are (O, C/g, 1, 1), in the order of the basis's last axis; the scales' rows are in this order too.
    """

    groups: int
    scales: Tensor  # v
    basis: Tensor  # B
    origin: Tensor | None  # W0
    points: tuple[Tensor, ...]  # w_j
    chain: tuple[Tensor, Tensor] | None  # W1, W2
    separable: tuple[Tensor, Tensor] | None  # D, P

    def rows(self, scales: Tensor) -> Rows:
        """Views of `scales`, or of their gradient."""
        there = (self.origin is not None, len(self.points), self.chain is not None, self.separable is not None)
        return Rows(*torch.split(scales, [int(rows) for rows in there]))

    @property
    def inputs(self) -> int:
        """C/g: all that reads the input has it in the second axis, the pointwise factor MULTIPLIER times."""
        if self.separable is not None:
            return self.separable[1].shape[1] // MULTIPLIER
        readers = (self.origin, *self.points, *(self.chain or ()))
        return next(int(reader.shape[1]) for reader in readers if reader is not None)


def mixing(first_TI: Tensor, groups: int) -> Tensor:
    """A = I + W1, (T, C/g, 1, 1): each group's rows repeat its identity T/C times."""
    width, inputs = first_TI.shape[:2]
    return first_TI + algebra.identity(inputs * groups, groups, first_TI, width)


def plain(weights: Weights) -> Tensor:
    """The kernel (O, C/g, k, k), contiguous, as the sum of its terms; differentiable any number of times."""
    v = weights.scales[:, :, None, None, None]
    kernel: Tensor = reduce(add, (scale * term for scale, term in zip(v, _terms(weights), strict=True)))
    return kernel.contiguous()


def _terms(weights: Weights) -> Iterator[Tensor]:
    """Each term as a whole kernel (O, C/g, k, k), in the order of the scales' rows."""
    groups, k = weights.groups, isqrt(weights.basis.shape[1])
    if weights.origin is not None:
        yield weights.origin
    for column, point in enumerate(weights.points):
        yield point * weights.basis[:, :, column].reshape(-1, 1, k, k)
    if weights.chain is not None:
        first, second = weights.chain
        yield algebra.chain(mixing(first, groups), second, groups)
    if weights.separable is not None:
        yield algebra.spread(*weights.separable, groups, MULTIPLIER)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off where the device has it (meta has none, and says so by raising)."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def lean(weights: Weights) -> Tensor:
    """The kernel (O, C/g, k, k), contiguous; the same numbers as `plain` up to rounding."""
    if torch.compiler.is_exporting():
        return plain(weights)  # an exported graph wants operations, not a function with a backward
    kernel: Tensor = Composition.apply(weights.groups, *_flat(weights))
    return kernel


class Composition(torch.autograd.Function):
    """`plain`, differentiated by hand. Under `create_graph` the gradients are those of `plain` itself."""

    @staticmethod
    def forward(ctx: FunctionCtx, groups: int, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(*tensors)  # type: ignore[arg-type]  # it takes None too
        ctx.groups = groups  # type: ignore[attr-defined]
        return _forward(_weights(groups, tensors))

    @staticmethod
    def backward(ctx: Any, grad_OIHW: Tensor) -> tuple[Tensor | None, ...]:
        tensors: Sequence[Tensor | None] = ctx.saved_tensors
        weights = _weights(ctx.groups, tensors)
        with no_autocast(grad_OIHW.device):  # a backward called inside autocast finds it switched on
            if torch.is_grad_enabled():
                return (None, *_differentiable(weights, grad_OIHW))
            return (None, *_backward(weights, grad_OIHW))


def _flat(weights: Weights) -> Flat:
    """The tensors one by one, as autograd wants them: v, B, W0, W1, W2, D, P, points; None for what is left out."""
    pairs = (*(weights.chain or (None, None)), *(weights.separable or (None, None)))
    return [weights.scales, weights.basis, weights.origin, *pairs, *weights.points]


def _weights(groups: int, flat: Sequence[Any]) -> Weights:
    scales, basis, origin, first, second, depthwise, pointwise, *points = flat
    chain = None if first is None else (first, second)
    separable = None if depthwise is None else (depthwise, pointwise)
    return Weights(groups, scales, basis, origin, tuple(points), chain, separable)


def _differentiable(weights: Weights, grad_OIHW: Tensor) -> Flat:
    flat = _flat(weights)
    wanted = [tensor for tensor in flat if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(plain(weights), wanted, grad_OIHW, create_graph=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in flat]


def _forward(weights: Weights) -> Tensor:
    groups, inputs, v = weights.groups, weights.inputs, weights.rows(weights.scales)
    c_out, taps, _ = weights.basis.shape
    if weights.chain is not None:
        first_GTI, second_GNT = _chain_matrices(*weights.chain, groups)
        total_OKI = torch.bmm(second_GNT, first_GTI).view(c_out, taps, inputs).mul_(v.chain.view(-1, 1, 1))
    else:
        total_OKI = weights.scales.new_zeros(c_out, taps, inputs)
    if weights.origin is not None:
        total_OKI.addcmul_(_taps_last(weights.origin), v.origin.view(-1, 1, 1))
    if weights.points:
        total_OKI.baddbmm_(weights.basis, (_stacked(weights.points) * v.points[:, :, None]).transpose(0, 1))
    # The only pass that permutes, fused with the last scale and addition.
    kernel = total_OKI.new_empty(c_out, inputs, isqrt(taps), isqrt(taps))
    summed, out = total_OKI.transpose(1, 2).view(groups, -1, inputs, taps), kernel.view(groups, -1, inputs, taps)
    if weights.separable is not None:
        depthwise_CMK, pointwise_COM = _separable_matrices(*weights.separable, groups)
        spread = torch.bmm(pointwise_COM, depthwise_CMK).view(groups, inputs, -1, taps).transpose(1, 2)
        torch.addcmul(summed, spread, v.separable.view(groups, -1, 1, 1), out=out)
    else:
        out.copy_(summed)
    return kernel


def _backward(weights: Weights, grad_OIHW: Tensor) -> Flat:
    """Gradients in the order of `_flat` (None for the basis), each in its parameter's layout.

    Each function below returns those of one term's parameters and writes that of its scale into its row, `dv`.
    """
    c_out, inputs, k, _ = grad_OIHW.shape
    d_scales = torch.empty_like(weights.scales)
    v, dv = weights.rows(weights.scales), weights.rows(d_scales)
    g_OIK = grad_OIHW.reshape(c_out, inputs, k * k)
    h_OKI = g_OIK.transpose(1, 2).clone(memory_format=torch.contiguous_format)  # a copy for k = 1 too: it is scaled
    d_points = _backward_points(weights, v.points, dv.points, h_OKI) if weights.points else []
    d_origin = None if weights.origin is None else _backward_origin(weights.origin, v.origin, dv.origin, h_OKI)
    none = (None, None)
    d_chain = none if weights.chain is None else _backward_chain(*weights.chain, v.chain, dv.chain, h_OKI)
    separable = weights.separable
    d_separable = none if separable is None else _backward_separable(*separable, v.separable, dv.separable, g_OIK)
    return [d_scales, None, d_origin, *d_chain, *d_separable, *d_points]


def _backward_points(weights: Weights, v_PO: Tensor, dv_PO: Tensor, h_OKI: Tensor) -> list[Tensor]:
    s_POI = torch.bmm(weights.basis.transpose(1, 2), h_OKI).transpose(0, 1)
    dv_PO.copy_((s_POI * _stacked(weights.points)).sum(2))
    return [(s_OI * v_O[:, None])[:, :, None, None] for s_OI, v_O in zip(s_POI, v_PO, strict=True)]


def _backward_origin(origin: Tensor, v_1O: Tensor, dv_1O: Tensor, h_OKI: Tensor) -> Tensor:
    c_out, inputs, k, _ = origin.shape
    d_origin = h_OKI * _taps_last(origin)
    dv_1O.copy_(d_origin.sum((1, 2)))
    torch.mul(h_OKI, v_1O.view(-1, 1, 1), out=d_origin)  # memory that is there, not new pages
    return d_origin.view(c_out, k, k, inputs).permute(0, 3, 1, 2)


def _backward_chain(first: Tensor, second: Tensor, v_1O: Tensor, dv_1O: Tensor, h_OKI: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of W1 and W2; `h_OKI` is scaled in place."""
    c_out, width, k, _ = second.shape
    groups, inputs = first.shape[0] // width, first.shape[1]
    first_GTI, second_GNT = _chain_matrices(first, second, groups)
    # dv through U needs no stored product and stays right when v is zero.
    u = torch.bmm(h_OKI.view(groups, -1, inputs), first_GTI.transpose(1, 2))
    dv_1O.copy_((u * second_GNT).view(c_out, -1).sum(1))
    d_second = u.view(c_out, k * k, -1).mul_(v_1O.view(-1, 1, 1))
    h_OKI.mul_(v_1O.view(-1, 1, 1))
    d_first = torch.bmm(second_GNT.transpose(1, 2), h_OKI.view(groups, -1, inputs))
    return d_first.reshape(first.shape), d_second.view(c_out, k, k, -1).permute(0, 3, 1, 2)


def _backward_separable(
    depthwise: Tensor, pointwise: Tensor, v_1O: Tensor, dv_1O: Tensor, g_OIK: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of D and P."""
    c_out, inputs, taps = g_OIK.shape
    groups = depthwise.shape[0] // (MULTIPLIER * inputs)
    depthwise_CMK, pointwise_COM = _separable_matrices(depthwise, pointwise, groups)
    g_COK = g_OIK.view(groups, -1, inputs, taps).transpose(1, 2).reshape(groups * inputs, -1, taps)
    v_CO1 = v_1O.view(groups, 1, -1, 1).expand(-1, inputs, -1, -1).reshape(groups * inputs, -1, 1)
    r_COM = torch.bmm(g_COK, depthwise_CMK.transpose(1, 2))
    dv_1O.copy_((r_COM * pointwise_COM).view(groups, inputs, -1, MULTIPLIER).sum((1, 3)).view(1, c_out))
    d_depthwise = torch.bmm((pointwise_COM * v_CO1).transpose(1, 2), g_COK)
    d_pointwise = r_COM.mul_(v_CO1).view(groups, inputs, -1, MULTIPLIER).transpose(1, 2)
    return d_depthwise.view(depthwise.shape), d_pointwise.reshape(pointwise.shape)


def _chain_matrices(first: Tensor, second: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """A (g, T/g, C/g) and W2 (g, O/g * K, T/g), a view for a channels-last W2."""
    return (
        mixing(first, groups).reshape(groups, -1, first.shape[1]),
        _taps_last(second).reshape(groups, -1, second.shape[1]),
    )


def _separable_matrices(depthwise: Tensor, pointwise: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """D (C, 8, K), a view, and P (C, O/g, 8)."""
    c_out, inputs = pointwise.shape[0], pointwise.shape[1] // MULTIPLIER
    pointwise_GIOM = pointwise.reshape(groups, c_out // groups, inputs, MULTIPLIER).transpose(1, 2)
    return (
        depthwise.reshape(groups * inputs, MULTIPLIER, -1),
        pointwise_GIOM.reshape(groups * inputs, c_out // groups, MULTIPLIER),
    )


def _stacked(points: tuple[Tensor, ...]) -> Tensor:
    """(points, O, C/g)."""
    return torch.stack([point.flatten(1) for point in points])


def _taps_last(weight_OIHW: Tensor) -> Tensor:
    """(O, K, I): free for a channels-last weight, a copy (never a wrong result) for any other."""
    c_out, inputs = weight_OIHW.shape[:2]
    return weight_OIHW.permute(0, 2, 3, 1).reshape(c_out, -1, inputs)
