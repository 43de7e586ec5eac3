"""CGC, context-gated convolution: what the whole map looks like decides how much of each tap of the kernel counts.

    y = bn((gate ⊙ W) * x),   gate[o, i] = sigmoid(D_1 relu(bn_1(c))[i] + D_2 relu(bn_3(mix(relu(bn_2(c)))))[o])
    c = E pool(x),   pool to k x k,   E (L, k k) for each channel alike,   L = k k // 2 + 1,   D_1, D_2 (k k, L)

mix takes I channels to O in n groups of channels in a row, by one matrix (O / n, I / n) that all groups, samples and
positions share; the outputs stay in the order of the groups. No linear layer has a bias. The norms are of (N, channels,
L), I of them in bn_1 and bn_2, O in bn_3: with L > 1 they can be trained on a batch of one. At k = 1 this is a plain
convolution.

    parameters   O (I / g) k k + 3 k k L + 4 I + 2 O + (I / n) (O / n),   and bn

In the released code n = I // 16 (1 below 16 channels), and it fails where I > 16 is no multiple of 16 or O none of n.
Here n is the largest divisor that I and O share up to I // 16: the same n wherever that code computes something. Lifted
as well: maps that are not square or smaller than the kernel, and groups, gate[o, i] for the inputs i that o sees.

Initialisation as in the authors' ResNet50: W normal with variance 2 / (O k k), linear layers as torch makes them.
Shapes: x (N, I, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Lin et al., Context-Gated Convolution, ECCV 2020, arXiv:1910.05577.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.blocks.base import BLOCKS, ConvSpec
from harness.blocks.parts.per_sample import KernelWork, PerSampleBlock, convolve_each


@BLOCKS.register("cgc")
class CGC(PerSampleBlock):
    paper = "Lin et al., Context-Gated Convolution, ECCV 2020, arXiv:1910.05577"

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec)
        ends = spec.c_in, spec.c_out, spec.kernel_size, spec.stride, spec.padding, spec.dilation, spec.groups
        self.conv = nn.Conv2d(*ends, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if spec.kernel_size > 1:
            self.gate = Gate(spec)

    def convolved(self, x_NCHW: Tensor) -> Tensor:
        if self.spec.kernel_size == 1:
            y_NCHW: Tensor = self.conv(x_NCHW)
            return y_NCHW
        return convolve_each(x_NCHW, self.gate(x_NCHW, self.conv.weight), self.spec)


class Gate(KernelWork):
    """x (N, I, H, W) and a kernel (O, I / g, k, k) -> the kernel gated for each sample (N, O, I / g, k, k)."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.spec = spec
        taps = spec.kernel_size**2
        latent = taps // 2 + 1
        self.mixes = _groups(spec.c_in, spec.c_out)
        self.encode = nn.Linear(taps, latent, bias=False)
        self.bn1 = nn.BatchNorm1d(spec.c_in)
        self.decode_inputs = nn.Linear(latent, taps, bias=False)
        self.bn2 = nn.BatchNorm1d(spec.c_in)
        self.mix = nn.Conv1d(spec.c_in // self.mixes, spec.c_out // self.mixes, 1, bias=False)
        self.bn3 = nn.BatchNorm1d(spec.c_out)
        self.decode_outputs = nn.Linear(latent, taps, bias=False)

    def forward(self, x_NCHW: Tensor, weight_OIHW: Tensor) -> Tensor:
        s = self.spec
        context_NCL = self.encode(F.adaptive_avg_pool2d(x_NCHW, s.kernel_size).flatten(2))
        inputs_NCT = self.decode_inputs(torch.relu(self.bn1(context_NCL)))
        mixed_NOL = self._mixed(torch.relu(self.bn2(context_NCL)))
        outputs_NOT = self.decode_outputs(torch.relu(self.bn3(mixed_NOL)))
        # Per group of the convolution: its inputs along one axis, its outputs along another.
        inputs = inputs_NCT.reshape(-1, s.groups, 1, s.c_in // s.groups, s.kernel_size, s.kernel_size)
        outputs = outputs_NOT.reshape(-1, s.groups, s.c_out // s.groups, 1, s.kernel_size, s.kernel_size)
        gate_NOIHW = torch.sigmoid(inputs + outputs).reshape(-1, *weight_OIHW.shape)
        return gate_NOIHW * weight_OIHW

    def _mixed(self, context_NCL: Tensor) -> Tensor:
        """One matrix for all groups: the groups stand beside the samples."""
        batch, channels, latent = context_NCL.shape
        grouped = context_NCL.reshape(-1, channels // self.mixes, latent)
        mixed_NOL: Tensor = self.mix(grouped).reshape(batch, self.spec.c_out, latent)
        return mixed_NOL


def _groups(c_in: int, c_out: int) -> int:
    """The largest divisor that both numbers of channels have, up to a 16th of the inputs; 1 where that is none."""
    shared = gcd(c_in, c_out)
    return next(n for n in range(max(1, c_in // 16), 0, -1) if shared % n == 0)
