"""FastViT's RepMixer: a depthwise token mixer that adds to x what it changes of it, one convolution once fused.

    train   y = x + s (mixer(x) - bn(x)),   mixer(x) = bn(W_k * x) + bn(W_1 * x) + bn(x)   (parts/branches.py)
    fused   y = W * x + b,   W = I + s (fold(W_k) + embed(fold(W_1)) + fold(I) - fold'(I)),   b = s (b_mixer - b_bn)

The two bn(x) are different batch norms. s (C, 1, 1) is the layer scale, 1e-5 at first: a fresh block is nearly the
identity, and what is learned of its other weights in the first steps is below float32's last digit. A 1x1 has no W_1.
Shapes: x (N, C, H, W) -> y (N, C, H, W).
Paper: Vasu et al., FastViT, ICCV 2023, arXiv:2303.14189; the order convolution, then norm as in the authors' code.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import IdentityBN, over_parameterized, widen

FIRST_SCALE = 1e-5


@BLOCKS.register("repmixer")
class RepMixer(FusableBlock):
    paper = (
        "Vasu et al., FastViT: A Fast Hybrid Vision Transformer using Structural Reparameterization, ICCV 2023, "
        "arXiv:2303.14189"
    )
    sister = "orepa"
    strides = (1,)
    groups = "depthwise"

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: each has a batch norm of its own"] = "offline",
        layer_scale: Annotated[bool, "a learned factor per channel on what is added to x, 1e-5 at first"] = True,
    ) -> None:
        super().__init__(spec, reparam=reparam, layer_scale=layer_scale)
        self.mixer = over_parameterized(spec, 1)
        self.norm = IdentityBN(spec)
        self.norm.branch_name = "norm"  # type: ignore[assignment]
        scale = nn.Parameter(torch.full((spec.c_out, 1, 1), FIRST_SCALE)) if layer_scale else None
        self.register_parameter("scale", scale)
        self.scale: nn.Parameter | None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        change_NCHW = self.mixer(x_NCHW) - self.norm(x_NCHW)
        x_NCHW = widen(x_NCHW, self.spec.margin, self.spec.margin)
        return x_NCHW + change_NCHW if self.scale is None else torch.addcmul(x_NCHW, self.scale, change_NCHW)

    def kernel(self) -> Kernel:
        mixer, norm = self.mixer.kernel(), self.norm.kernel()
        size, scale = self.spec.kernel_size, mixer.bias.new_ones(()) if self.scale is None else self.scale
        copy = algebra.embed(algebra.identity(self.spec.c_in, self.spec.groups, mixer.weight), size)
        change = mixer.weight - algebra.embed(norm.weight, size)
        return Kernel(copy + scale[..., None] * change, scale.flatten() * (mixer.bias - norm.bias))
