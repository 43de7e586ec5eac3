"""WeightNet: a small network makes each sample's kernel, one part of one filter from a few sigmoids of its own.

    y = bn(W(x) * x),   a = sigmoid(U (R mean(x) + b) + c),   part p of filter o:   W_op = V_op a_op

R (r, I), r = max(16, I // 16), no activation behind it. A filter of E = (I / g) k k elements is made in G parts, each
E / G elements in a row, from M / G sigmoids: U (M O, r), V_op (E / G, M / G), so V has (M / G) O E elements, and V a
is a 1x1 convolution of M O channels in G O groups. M / G is the paper's 1x, 4x, 8x; M = G = 2 is what was released.

    parameters   r I + r + r M O + M O + (M / G) O E,   and bn

A depthwise filter has a rule of its own in the paper, one part from M / G sigmoids: r C + r + (M / G) (r C + C + C k k)
parameters. Here both are one rule, a single part wherever G does not divide E: that is every depthwise filter, and any
other with an odd I / g, which the released code cannot do. The paper has no groups between dense and depthwise.

Each block has an R of its own. In the authors' ShuffleNetV2 all convolutions of a unit share one, which reduces what
enters the unit: that is the network's matter, and asks that r be the same for all of them.

Initialisation as in the authors' code, in MegEngine, not run here: R and U normal with deviation 1 / fan-in, biases 0;
V normal with deviation 1 / (elements of a part), which is what 1 / weight.shape[1] is for grouped weights there.
Shapes: x (N, I, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Ma et al., WeightNet: Revisiting the Design Space of Weight Networks, ECCV 2020, arXiv:2007.11823.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.per_sample import KernelWork, PerSampleBlock, convolve_each, pooled


@BLOCKS.register("weightnet")
class WeightNet(PerSampleBlock):
    paper = "Ma et al., WeightNet: Revisiting the Design Space of Weight Networks, ECCV 2020, arXiv:2007.11823"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        sigmoids: Annotated[Literal[2, 4, 8], "M: for each output channel, shared out among the parts"] = 2,
        parts: Annotated[Literal[2, 1], "G: how many parts a filter is made in"] = 2,
    ) -> None:
        super().__init__(spec, sigmoids=sigmoids, parts=parts)
        elements = spec.c_in // spec.groups * spec.kernel_size**2
        each = sigmoids // parts
        rows = spec.c_out * (1 if elements % parts else parts)
        reduced = max(16, spec.c_in // 16)
        self.reduce = nn.Linear(spec.c_in, reduced)
        self.activate = nn.Linear(reduced, rows * each)
        self.generate = Generate(rows, elements * spec.c_out // rows, each)
        for linear in (self.reduce, self.activate):
            nn.init.normal_(linear.weight, std=1 / linear.in_features)
            nn.init.zeros_(linear.bias)

    def convolved(self, x_NCHW: Tensor) -> Tensor:
        s = self.spec
        activations_NA = torch.sigmoid(self.activate(self.reduce(pooled(x_NCHW))))
        shape = s.c_out, s.c_in // s.groups, s.kernel_size, s.kernel_size
        return convolve_each(x_NCHW, self.generate(activations_NA).reshape(-1, *shape), s)


class Generate(KernelWork):
    """The grouped layer without bias: (N, rows * each) -> (N, rows, elements), weight (rows, elements, each)."""

    def __init__(self, rows: int, elements: int, each: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, elements, each))
        nn.init.normal_(self.weight, std=1 / elements)

    def forward(self, activations_NA: Tensor) -> Tensor:
        rows, _, each = self.weight.shape
        activations_NRA = activations_NA.reshape(-1, rows, each)
        if each == 1:
            return activations_NRA * self.weight[..., 0]
        return torch.einsum("nra,rea->nre", activations_NRA, self.weight)
