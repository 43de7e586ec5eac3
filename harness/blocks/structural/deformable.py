"""Deformable convolution: every tap reads x beside its place, as far as a convolution of x says.

    y = bn(z),   z[n, o, p] = sum_t sum_c W[o, c, t] m[n, t, p] x[n, c, p + t + d[n, t, p]]
    [d, m'] = D * x + b,   m = 2 sigmoid(m')

x between pixels is bilinear, zero outside the map. D is a k x k convolution of the block's stride, padding and
dilation to 3 k k channels that reads all channels: first the k k offsets (dy, dx), tap by tap, then the k k masks.
Without `modulated` (the first version) D has 2 k k channels and m = 1.

Offsets and D's weights and bias start at zero, so at first the block is the plain convolution: the mask, too, is then
exactly 1 for the factor 2 before the sigmoid. The reference only says that mask 1 is the plain convolution; that the
authors' code has this factor is unverified.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)); W (c_out, c_in / groups, k, k).
W starts as a convolution does by torch's default. torchvision's `deform_conv2d` does the sampling; on the CPU it has
no bfloat16, in which coordinates would be coarse anyway (from 256 on, 2 pixels): that is computed in float32.
Papers: Dai et al., ICCV 2017, arXiv:1703.06211; modulated: Zhu et al., CVPR 2019, arXiv:1811.11168.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from harness.blocks.base import BLOCKS, Block, ConvSpec


@BLOCKS.register("deformable")
class Deformable(Block):
    paper = (
        "Zhu et al., Deformable ConvNets v2: More Deformable, Better Results, CVPR 2019, arXiv:1811.11168; "
        "without modulation: Dai et al., ICCV 2017, arXiv:1703.06211"
    )

    def __init__(
        self,
        spec: ConvSpec,
        *,
        modulated: Annotated[bool, "a mask for every tap beside its offset: the second version"] = True,
    ) -> None:
        super().__init__(spec, modulated=modulated)
        s, self.modulated = spec, modulated
        self.conv = nn.Conv2d(s.c_in, s.c_out, s.kernel_size, s.stride, s.padding, s.dilation, s.groups, bias=False)
        channels = (3 if modulated else 2) * s.kernel_size**2
        self.head = nn.Conv2d(s.c_in, channels, s.kernel_size, s.stride, s.padding, s.dilation)
        self.bn = nn.BatchNorm2d(s.c_out)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(self.sampled(x_NCHW))
        return y_NCHW

    def sampled(self, x_NCHW: Tensor) -> Tensor:
        """The block without its batch norm."""
        where_NCHW: Tensor = self.head(x_NCHW)
        taps = self.spec.kernel_size**2
        offsets_NCHW = where_NCHW[:, : 2 * taps]
        mask_NCHW = 2 * torch.sigmoid(where_NCHW[:, 2 * taps :]) if self.modulated else None
        return self._convolve(x_NCHW, offsets_NCHW, mask_NCHW).to(where_NCHW.dtype)

    def _convolve(self, x_NCHW: Tensor, offsets_NCHW: Tensor, mask_NCHW: Tensor | None) -> Tensor:
        exact = torch.promote_types(x_NCHW.dtype, torch.float32)
        y_NCHW: Tensor = deform_conv2d(
            x_NCHW.to(exact),
            offsets_NCHW.to(exact),
            self.conv.weight.to(exact),
            stride=self.spec.stride,
            padding=self.spec.padding,
            dilation=self.spec.dilation,
            mask=None if mask_NCHW is None else mask_NCHW.to(exact),
        )
        return y_NCHW
