"""DY-Conv, dynamic convolution: the kernel is an average of K kernels, weighed by a softmax over them.

    y = bn((sum_k a_k W_k) * x),   a = softmax(z / T),   z = V relu(U mean(x)) + v

Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)), kernels W_k (c_out, c_in / groups, k, k),
U (h, c_in), V (K, h), one a (N, K) for each sample; h = c_in // 4 + 1, but K for an image of three channels.

T falls from 30 to 1 over the first 10 epochs, so that at first all kernels learn: here batch by batch, linearly, as
`harness.models.Annealing` steps it. The re-implementation lowers it instead from 34 by 3 whenever its user calls a
method of the network, meant for once an epoch, and so 11 times until 1; there an unstepped block stays at 34, and the
state dict does not know.

The paper mixes a bias with the kernels: left out, the batch norm takes its mean over the batch away, and has one
itself. No release of the authors was found: h and the initialisation (kernels kaiming uniform, each by its fan-in, U
and V kaiming normal by their fan-out, v zero) are the re-implementation's.
Paper: Chen et al., Dynamic Convolution, CVPR 2020, arXiv:1912.03458, section 3; kaijieshi7/Dynamic-convolution-Pytorch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.experts import ExpertBlock, fan_out_linear
from harness.blocks.parts.per_sample import Schedule, Tempered, convolve_each, pooled


@BLOCKS.register("dyconv")
class DYConv(ExpertBlock):
    paper = (
        "Chen et al., Dynamic Convolution: Attention over Convolution Kernels, CVPR 2020, arXiv:1912.03458, section 3"
    )

    def __init__(
        self,
        spec: ConvSpec,
        *,
        kernels: Annotated[Literal[2, 4, 8], "kernels to average"] = 4,
    ) -> None:
        super().__init__(spec, kernels, nn.init.kaiming_uniform_, kernels=kernels)
        self.attention = KernelAttention(spec.c_in, kernels)

    def convolved(self, x_NCHW: Tensor) -> Tensor:
        return convolve_each(x_NCHW, self.mixed(self.attention(pooled(x_NCHW))), self.spec)


class KernelAttention(Tempered):
    """softmax((V relu(U x) + v) / T): x (N, c_in) -> (N, kernels)."""

    def __init__(self, c_in: int, kernels: int) -> None:
        super().__init__(Schedule(30, 1, epochs=10, of=100))
        hidden = kernels if c_in == 3 else c_in // 4 + 1
        self.squeeze = fan_out_linear(c_in, hidden, bias=False)
        self.kernels = fan_out_linear(hidden, kernels)

    def forward(self, x_NC: Tensor) -> Tensor:
        logits_NK: Tensor = self.kernels(F.relu(self.squeeze(x_NC)))
        return (logits_NK / self.temperature).softmax(1)
