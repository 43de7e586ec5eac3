"""OREPA's two steps for a block of several branches: scales in place of their batch norms, one norm behind the sum.

    train   y = bn(W * x),   W = sum_j v_j W_j              online: composed as kernels, one convolution
            y = bn(sum_j v_j branch_j(x))                   offline: each branch on the feature map
    fused   y = W' * x + b,   W' = fold(W)

branch_j are those of the block `of`, every batch norm taken out, also one between two convolutions of a chain: what
its rim was padded with is then zero. W_j is the kernel of what is left, at the centre of k x k. v_j starts at 1, as
the batch-norm weights did that it stands for. In eval the online kernel is composed once and kept until a parameter
changes (cached.py). In training it keeps two maps for backward, as one convolution does, and up to six kernels for the
scales' gradients; offline keeps a map for each scale: 2.12 and 8.15 input maps for dbb, 64 -> 64 on 8x64x56x56.
Shapes: x (N, c_in, H, W) -> y (N, c_out, ceil(H / stride), ceil(W / stride)).
Paper: Hu et al., Online Convolutional Re-parameterization, CVPR 2022, arXiv:2204.00826, section 3.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import Branch, Parallel
from harness.blocks.parts.cached import CachedKernel
from harness.blocks.parts.composition import no_autocast
from harness.blocks.parts.linear_branches import PAPER, REPARAM, SCALING


class Scaled(nn.Module):
    """y = v * branch(x), v (c_out,) or (1,), at first 1."""

    def __init__(self, branch: nn.Module, channels: int) -> None:
        super().__init__()
        self.branch = branch
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.scale[:, None, None] * self.branch(x_NCHW)
        return y_NCHW

    def kernel(self) -> Kernel:
        branch: Branch = self.branch  # type: ignore[assignment]
        weight_OIHW, bias_O = branch.kernel()
        return Kernel(self.scale[:, None, None, None] * weight_OIHW, self.scale * bias_O)


@BLOCKS.register("linearized")
class Linearized(FusableBlock):
    paper = PAPER

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: REPARAM = "online",
        of: Annotated[Literal["dbb", "acb", "repvgg", "mobileone"], "the block whose branches these are"] = "dbb",
        scaling: SCALING = "vector",
    ) -> None:
        super().__init__(spec, reparam=reparam, of=of, scaling=scaling)
        branches = branches_without_norms(of, spec)
        if scaling != "none":
            channels = spec.c_out if scaling == "vector" else 1
            branches = {name: Scaled(branch, channels) for name, branch in branches.items()}
        self.branches = Parallel(spec.kernel_size, branches)
        self.bn = nn.BatchNorm2d(spec.c_out)
        self.reparam = reparam
        self._cache = CachedKernel()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        summed = self._online if self.reparam == "online" else self.branches
        y_NCHW: Tensor = self.bn(summed(x_NCHW))
        return y_NCHW

    def kernel(self) -> Kernel:
        return algebra.fold(self._weight(), self.bn)

    def _weight(self) -> Tensor:
        """W (c_out, c_in / g, k, k), composed outside autocast. Without norms there is no bias: that of W is zero."""
        with no_autocast(self.bn.weight.device):
            return self.branches.kernel().weight

    def _online(self, x_NCHW: Tensor) -> Tensor:
        s = self.spec
        weight = self._cache.get(self.branches, self._weight)
        return F.conv2d(x_NCHW, weight, None, s.stride, s.padding, s.dilation, s.groups)


def branches_without_norms(of: str, spec: ConvSpec) -> dict[str, nn.Module]:
    """The branches of a fresh block by name, each batch norm in them replaced by nn.Identity."""
    branches = BLOCKS[of](spec).branches
    assert isinstance(branches, Parallel)
    for parent in list(branches.modules()):
        for name, child in parent.named_children():
            if isinstance(child, BatchNorm):
                setattr(parent, name, nn.Identity())
    return {branch.branch_name: branch for branch in branches}  # type: ignore[misc]
