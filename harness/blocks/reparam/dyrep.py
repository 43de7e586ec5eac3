"""DyRep: a convolution that grows branches while it trains, where they help, and loses those that do not.

    plain   y = bn(W * x)                                                 at the start
    grown   y = bn( bn_k(W * x + c)                                       kxk, always there
                  + bn(P * x)                                             1x1
                  + bn(V * rim(bn(U * x)))                                1x1-kxk, U (C, C/g, 1, 1), V (O, C/g, k, k)
                  + bn(avg(rim(bn(Q * x))))                               1x1-average, Q (O, C/g, 1, 1)
                  + bn(H * x) + bn(T * x)                                 1xk, kx1
                  + bn(x) )                                               identity, where O == C and stride is 1
    fused   y = W' * x + b,   all that is there folded, chained, summed, and folded into the outer bn

`rim` pads with what its batch norm makes of a zero, by running statistics, so that the chains fold exactly at the
border. Depthwise, the average has no 1x1 before it. Dilation belongs to every kernel larger than 1x1. A branch starts
with weights N(0, 2 / (kh kw O)) and 0.01 in the batch norm that ends it. `absorb` then takes what the branches add out
of W and c: the eval output is kept, exactly, as bn_k, set to pass its input on, still divides by sqrt(1 + eps). The
training output is not kept: bn_k takes batch statistics there, and the outer bn has to make up for it.
A 1x1 is never expanded, and an even kernel has no centre for the small branches: it has 1x1-kxk and 1x1-average.
When to grow and what to cut is decided in `harness.training.growth`.
Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Huang et al., DyRep, CVPR 2022, arXiv:2203.12868; as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.declared import KERNEL_SIZES, Choice
from harness.blocks.parts.branches import Branch, ConvBN, IdentityBN
from harness.blocks.parts.chains import AverageBN, Chain, PointwiseAverage, last_norm

ORIGIN = "kxk"
SLOTS = ("1x1", "1x1-kxk", "1x1-average", ORIGIN, "1xk", "kx1", "identity")
"""In the authors' order; sums are taken in it."""
CENTRED = ("1x1", "1xk", "kx1", "identity")
"""Slots that sit on the centre of the kernel."""
FIRST_GAMMA = 0.01
"""Of the batch norm that ends a new branch."""

MAKERS: Mapping[str, Callable[[ConvSpec], nn.Module]] = {
    "1x1": lambda spec: ConvBN(spec.resized(1)),
    "1x1-kxk": lambda spec: Chain(spec, spec.c_in, residual=False),
    "1x1-average": lambda spec: AverageBN(spec, spec.padding) if spec.depthwise else PointwiseAverage(spec),
    "1xk": lambda spec: ConvBN(spec, (1, spec.kernel_size)),
    "kx1": lambda spec: ConvBN(spec, (spec.kernel_size, 1)),
    "identity": IdentityBN,
}


class DyRepConv(FusableBlock):
    """A plain convolution that can have branches: it stands where a convolution of any model stood, its norm behind it.

    Plain it is `conv` alone; grown, `norm` follows that, and `branches` (by slot) are added. Not registered: the block
    is `DyRepBlock`, which ends in a batch norm of its own.
    """

    paper = "Huang et al., DyRep: Bootstrapping Training with Dynamic Re-parameterization, CVPR 2022, arXiv:2203.12868"
    kernel_sizes = tuple(range(1, 65))  # even ones too: those that cut an image into patches

    def __init__(self, spec: ConvSpec, conv: nn.Conv2d | None = None, **options: Choice) -> None:
        super().__init__(spec, **options)
        if conv is None:
            s = spec
            conv = nn.Conv2d(s.c_in, s.c_out, s.kernel_size, s.stride, s.padding, s.dilation, s.groups, bias=False)
        self.conv = conv
        self.norm: nn.Module = nn.Identity()
        self.branches = nn.ModuleDict()
        self.train(conv.training)

    @classmethod
    def around(cls, conv: nn.Conv2d) -> DyRepConv:
        """In the place of this convolution, which it goes on with; rows and columns alike, padding in numbers."""
        assert not isinstance(conv.padding, str)
        k, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
        spec = ConvSpec(conv.in_channels, conv.out_channels, k, stride, conv.groups, dilation)
        return cls(spec.padded(conv.padding[0]), conv)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.norm(self.conv(x_NCHW))
        for branch in self.branches.values():
            y_NCHW = y_NCHW + branch(x_NCHW)
        return y_NCHW

    def kernel(self) -> Kernel:
        return self.summed()

    def summed(self) -> Kernel:
        """The origin and the branches as one kernel; what follows them in a subclass is not in it."""
        weight = self.conv.weight
        bias = weight.new_zeros(weight.shape[0]) if self.conv.bias is None else self.conv.bias
        return algebra.add([algebra.fold_biased(Kernel(weight, bias), self.norm), *self._added()])

    @property
    def fitting(self) -> tuple[str, ...]:
        """The slots that this place can have beside the origin."""
        spec = self.spec
        left_out = {ORIGIN} if spec.kernel_size % 2 else {ORIGIN, *CENTRED}
        if not spec.keeps_shape:
            left_out.add("identity")
        return () if spec.kernel_size == 1 else tuple(slot for slot in SLOTS if slot not in left_out)

    @property
    def slots(self) -> tuple[str, ...]:
        """Those that are there."""
        return tuple(slot for slot in SLOTS if slot == ORIGIN or slot in self.branches)

    def norms(self) -> list[nn.BatchNorm2d]:
        """The batch norms of the origin and the branches."""
        inside = [*self.norm.modules(), *self.branches.modules()]
        return [module for module in inside if isinstance(module, nn.BatchNorm2d)]

    @torch.no_grad()
    def importance(self) -> dict[str, float]:
        """By branch: mean |gamma| of the batch norm that ends it over mean |gamma| of the origin's."""
        ends = {slot: last_norm(branch).weight for slot, branch in self.branches.items()}
        origin = cast(Tensor, self.norm.weight)
        return {slot: float(gamma.abs().mean() / origin.abs().mean()) for slot, gamma in ends.items()}

    def grow(self, slots: Collection[str], generator: torch.Generator | None = None) -> None:
        """Give a plain convolution these branches, as they start; the output changes until `absorb`.

        Their weights are drawn on the CPU whatever the device, from torch's own stream without a generator. The
        convolution's weight becomes a new parameter, its bias stays the one it was.
        """
        weight = self.conv.weight
        self.conv.weight = nn.Parameter(weight.detach().clone())
        if self.conv.bias is None:
            self.conv.bias = nn.Parameter(weight.new_zeros(self.spec.c_out))
        self.norm = nn.BatchNorm2d(self.spec.c_out)
        self.branches.update({slot: MAKERS[slot](self.spec) for slot in SLOTS if slot in slots})
        for slot, branch in self.branches.items():
            branch.branch_name = slot  # type: ignore[assignment]
            _start(branch, generator)
        # A weight larger than 1x1 that is not contiguous is channels-last.
        layout = torch.contiguous_format if weight.is_contiguous() else torch.channels_last
        for module in (self.norm, self.branches):
            module.to(weight.device, weight.dtype).to(memory_format=layout)
            module.train(self.training)

    @torch.no_grad()
    def absorb(self, total: Kernel) -> None:
        """Make the origin what the branches leave of `total`, so that all together compute it in eval mode.

        The origin's batch norm starts anew: gamma 1, beta 0, running statistics (0, 1).
        """
        assert isinstance(self.norm, nn.BatchNorm2d)
        assert self.conv.bias is not None
        rest = algebra.add(self.exact()._added())
        self.norm.reset_parameters()
        passed_on = math.sqrt(1 + self.norm.eps)  # the authors leave this out, and are off by 5e-6
        self.conv.weight.copy_((total.weight - rest.weight) * passed_on)
        self.conv.bias.copy_((total.bias - rest.bias) * passed_on)

    @torch.no_grad()
    def cut(self, slots: Collection[str]) -> None:
        """Without these branches; the eval output is kept. With none left: a plain convolution with a bias."""
        total = self.exact().summed()
        for slot in slots:
            del self.branches[slot]
        if self.branches:
            self.absorb(total)
            return
        weight = self.conv.weight
        self.conv.weight = nn.Parameter(torch.empty_like(weight).copy_(total.weight))
        self.conv.bias = nn.Parameter(weight.new_empty(self.spec.c_out).copy_(total.bias))
        self.norm = nn.Identity()

    def exact(self) -> DyRepConv:
        """A copy in float64 on the CPU, without gradients."""
        return deepcopy(self).to("cpu", torch.float64).requires_grad_(False)

    def _added(self) -> list[Kernel]:
        """What each branch adds, (c_out, c_in / groups, k, k)."""
        kernels = [cast(Branch, branch).kernel() for branch in self.branches.values()]
        return [Kernel(algebra.embed(kernel.weight, self.spec.kernel_size), kernel.bias) for kernel in kernels]


def _start(branch: nn.Module, generator: torch.Generator | None) -> None:
    for conv in branch.modules():
        if isinstance(conv, nn.Conv2d):
            outputs = conv.out_channels * math.prod(conv.kernel_size)
            nn.init.normal_(conv.weight, std=math.sqrt(2 / outputs), generator=generator)
    nn.init.constant_(last_norm(branch).weight, FIRST_GAMMA)


@BLOCKS.register("dyrep")
class DyRepBlock(DyRepConv):
    kernel_sizes = KERNEL_SIZES
    sister = "orepa"
    training_rules = ("dyrep",)

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: each has batch norms of its own"] = "offline",
        branches: Annotated[
            Literal["none", "all"],
            "those that are there from the start: none, as in the paper, or all that fit, as large as it can get",
        ] = "none",
        score: Annotated[
            Literal["synflow", "grad_norm", "snip", "random"], "what convolutions are ranked by when one is to grow"
        ] = "synflow",
    ) -> None:
        super().__init__(spec, reparam=reparam, branches=branches, score=score)
        self.score = score
        self.bn = nn.BatchNorm2d(spec.c_out)
        if branches == "all" and self.fitting:
            self.grow(self.fitting)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(super().forward(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return algebra.fold_biased(self.summed(), self.bn)
