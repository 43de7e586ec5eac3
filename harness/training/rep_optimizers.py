"""RepOptimizers: a plain network trained as if it had RepVGG's branches, which only its optimizer knows of.

The imagined block (constant-scale linear addition, CSLA), one batch norm behind it:

    y = bn(s_k * (W_k * x) + s_1 * (W_1 * x) + s_id * x),   s_k and s_1 constant, s_id trained and decayed

is a single kernel W = s_k W_k + embed(s_1 W_1) + diag(s_id), and trains as this kernel does alone, begun at that sum,
when its gradient is multiplied, element by element, by

    M = s_k^p + s_1^p at the centre + 1 on the centre's diagonal,   p = 2 for SGD, 1 for AdamW

With x (N, c_in, H, W), W (c_out, c_in / groups, k, k) and scales that are numbers or (c_out,). The diagonal is there
where c_in == c_out and stride == 1, whatever s_id begins as. Where nothing was searched, s_k = s_1 = sqrt(2 / i) for
the i-th convolution behind the one that begins a stage, which has 1, and s_id = 1. Clipping gradients breaks the
equivalence. The hyper-search, an ordinary training of the sum above with all scales trained, is not here: scales
that it found are handed to `initialize` and to the optimizers.
Paper: Ding et al., Re-parameterizing Your Optimizers rather than Architectures, arXiv:2205.15242.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from harness.blocks import Block, algebra
from harness.blocks.plain.conv import Conv
from harness.errors import Unsupported
from harness.models.layers import has_own_reparameterization

MULTIPLIER = "multiplier"
"""M's name in the optimizer's state of a parameter."""


@dataclass(frozen=True)
class Scales:
    """Of one layer's imagined branches: k x k, 1x1 and identity; numbers, or tensors (c_out,). None: no identity."""

    conv: float | Tensor
    pointwise: float | Tensor
    identity: float | Tensor | None


ByWeight = Mapping[Tensor, Scales]
"""The scales of every convolution that has them, by its weight."""


def default_scales(model: nn.Module) -> dict[Tensor, Scales]:
    """The scales of a network for which none were searched; a stage begins at every convolution that strides.

    Its convolutions of an odd size above 1 have them, the stem too, in the order in which they are registered.
    Raises Unsupported for a model that has none, or that has real branches.
    """
    found: dict[Tensor, Scales] = {}
    place = -1  # the first layer begins a stage, strided or not
    for conv in _plain_convolutions(model):
        strided = conv.stride != (1, 1)
        place = 0 if strided else place + 1
        scale = (2 / place) ** 0.5 if place else 1.0
        keeps_shape = conv.in_channels == conv.out_channels and not strided
        found[conv.weight] = Scales(scale, scale, 1.0 if keeps_shape else None)
    if not found:
        raise Unsupported(
            "repopt imagines branches beside k x k convolutions, and this model trains none",
            remedy="use a backbone with 3x3 convolutions, such as plain_a0",
        )
    return found


def _plain_convolutions(model: nn.Module) -> Iterator[nn.Conv2d]:
    for name, module in model.named_modules():
        block = isinstance(module, Block) and not isinstance(module, Conv)
        if block or (name and has_own_reparameterization(module)):
            raise Unsupported(
                f"repopt is for plain networks, and {name or 'the model'} is a {type(module).__name__}",
                remedy="use block conv with repopt, or optimizer sgd with this block",
            )
        if type(module) is nn.Conv2d and module.weight.requires_grad:
            rows, columns = module.kernel_size
            if rows == columns > 1 and rows % 2:
                yield module


@torch.no_grad()
def initialize(scales: ByWeight) -> None:
    """Begin as the imagined network does: W <- s_k W + embed(s_1 W_1) + diag(s_id), in place, W_1 torch's default.

    W_1 is drawn from torch's global generator, on the CPU whatever the device, so that a seed gives the same weights
    everywhere.
    """
    for weight, layer in scales.items():
        c_out, inputs = weight.shape[:2]
        pointwise = nn.Conv2d(inputs, c_out, 1, bias=False, device="cpu").weight.to(weight)
        weight.mul_(_per_channel(layer.conv, weight))
        centre = _centre(weight)
        centre += pointwise * _per_channel(layer.pointwise, weight)
        if layer.identity is not None:
            centre += _diagonal(weight) * _per_channel(layer.identity, weight)


@torch.no_grad()
def multiplier(weight: Tensor, scales: Scales, power: int) -> Tensor:
    """M, shaped like `weight`: what its gradient is multiplied by, scales raised to `power`."""
    m_OIHW = torch.ones_like(weight) * _per_channel(scales.conv, weight) ** power
    centre = _centre(m_OIHW)
    centre += _per_channel(scales.pointwise, weight) ** power
    if scales.identity is not None:
        centre += _diagonal(weight)
    return m_OIHW


def _per_channel(scale: float | Tensor, weight: Tensor) -> Tensor:
    """(c_out or 1, 1, 1, 1), as `weight` is."""
    return torch.as_tensor(scale, dtype=weight.dtype, device=weight.device).reshape(-1, 1, 1, 1)


def _centre(kernel_OIHW: Tensor) -> Tensor:
    """The middle tap, (O, I, 1, 1), a view."""
    middle = kernel_OIHW.shape[-1] // 2
    return kernel_OIHW[:, :, middle : middle + 1, middle : middle + 1]


def _diagonal(weight: Tensor) -> Tensor:
    """The 1x1 kernel that copies, for as many channels in as out."""
    channels, inputs = weight.shape[:2]
    return algebra.identity(channels, channels // inputs, like=weight)


class RepSGD(torch.optim.SGD):
    """SGD of a network with imagined branches: gradients are multiplied by M before decay and momentum.

    scales: of the weights that have any (`default_scales`); all other parameters train as with SGD. `parameter.grad`
    is left as it is. M is made in the first step with a gradient, and is a part of the state.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        scales: ByWeight,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr, momentum, 0.0, weight_decay, nesterov, foreach=foreach, fused=fused)
        self.scales = dict(scales)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "scales": self.scales}

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        momentum_buffer_list: list[Tensor | None],
    ) -> bool:
        """What torch gathers of a group for its step, whatever the implementation; `grads` multiplied by M."""
        sparse: bool = super()._init_group(group, params, grads, momentum_buffer_list)  # type: ignore[no-untyped-call]
        _multiply(self, params, grads, power=2)
        return sparse


class RepAdamW(torch.optim.AdamW):
    """AdamW of a network with imagined branches: the weight decays, both moments see M g, the step is times M again.

        W <- (1 - lr * decay) W - M * lr * step(M g)

    Multiplying the gradient alone would change nothing: the step is normalised by its own size. Arguments as RepSGD's.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        scales: ByWeight,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, foreach=foreach, fused=fused)
        self.scales = dict(scales)
        # A fused step that a GradScaler skips would still decay here: let it unscale and skip by itself.
        self._step_supports_amp_scaling = False

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "scales": self.scales}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_of(group)
        return loss

    def _step_of(self, group: dict[str, Any]) -> None:
        """torch's own step, but from zero for weights with an M: what comes of it is their step, to be multiplied."""
        params: list[Tensor] = []
        grads: list[Tensor] = []
        averages: list[Tensor] = []
        squares: list[Tensor] = []
        steps: list[Tensor] = []
        self._init_group(group, params, grads, averages, squares, [], steps)  # type: ignore[no-untyped-call]
        scaled = _multiply(self, params, grads, power=1)
        weights = [params[place] for place in scaled]
        for place in scaled:
            params[place] = torch.zeros_like(params[place])
        beta1, beta2 = group["betas"]
        adamw(
            params, grads, averages, squares, [], steps, group["foreach"], fused=group["fused"], amsgrad=False,
            beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
            maximize=False,
        )  # fmt: skip
        if weights:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_addcmul_(weights, [params[place] for place in scaled], list(scaled.values()))


def _multiply(optimizer: RepSGD | RepAdamW, params: list[Tensor], grads: list[Tensor], power: int) -> dict[int, Tensor]:
    """Put M g in the place of each g that has an M, made where it is not there yet; every M by its place."""
    places = {place: weight for place, weight in enumerate(params) if weight in optimizer.scales}
    if not places:
        return {}
    found = {}
    for place, weight in places.items():
        state = optimizer.state[weight]
        if MULTIPLIER not in state:
            state[MULTIPLIER] = multiplier(weight, optimizer.scales[weight], power)
        found[place] = state[MULTIPLIER]
    products = torch._foreach_mul([grads[place] for place in found], list(found.values()))
    for place, product in zip(found, products, strict=True):
        grads[place] = product
    return found
