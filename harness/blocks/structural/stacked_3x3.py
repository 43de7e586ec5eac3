"""VGG's stack: 3x3 convolutions in a row in the place of one large kernel, with the same window.

    y = bn(W_n * relu(... bn(W_1 * x)))      n = (k - 1) / 2 kernels of 3x3, W_1 c_in -> c_out, others c_out -> c_out

9 n C^2 weights where the convolution has k^2 C^2: 18 to 25 for k = 5. Without `activation` there are batch norms alone
between the kernels, so that the whole is linear in eval. All are dilated. The stride is W_1's; behind one of s the
window is wider than the convolution's, 3 + 2 (n - 1) s pixels instead of k.

A margin is W_1's. Where it is so negative that W_1 has no padding left to take away, it goes on with the next ones',
so that without padding the stack reads exactly the pixels of the convolution; behind a stride, where that would change
the output's size, W_1 reads a crop of x, and the others find zeros around theirs.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Simonyan and Zisserman, VGG, ICLR 2015, arXiv:1409.1556, section 2.3;
the batch norms as in torchvision's vgg*_bn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

from torch import Tensor

from harness.blocks.base import BLOCKS, Block, ConvSpec
from harness.blocks.declared import KERNEL_SIZES
from harness.blocks.parts.branches import ConvBN
from harness.blocks.parts.stages import RELU, in_a_row


@BLOCKS.register("stacked_3x3")
class Stacked3x3(Block):
    paper = "Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015, arXiv:1409.1556, section 2.3"
    kernel_sizes = KERNEL_SIZES[2:]
    groups = "dense"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        activation: Annotated[bool, "a ReLU behind every batch norm but the last"] = True,
    ) -> None:
        super().__init__(spec, activation=activation)
        self.stages = in_a_row(map(ConvBN, _places(spec)), RELU if activation else None)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.stages(x_NCHW)
        return y_NCHW


def _places(spec: ConvSpec) -> Iterator[ConvSpec]:
    """Where each of the 3x3 convolutions stands."""
    c_in, stride, left = spec.c_in, spec.stride, spec.margin
    for _ in range(spec.kernel_size // 2):
        margin = left if spec.stride > 1 else max(left, -spec.dilation)
        yield replace(spec, c_in=c_in, kernel_size=3, stride=stride, margin=margin)
        c_in, stride, left = spec.c_out, 1, left - margin
