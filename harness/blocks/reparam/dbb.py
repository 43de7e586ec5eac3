"""DBB, the diverse branch block: branches of different shape, each with batch norms of its own.

                                                     option      transform
    train   y = bn(W * x)                            origin      T1
              + bn(P * x)                            point       T6  P (O, C/g, 1, 1)
              + bn(V * rim(bn(U * x)))               chain       T3  U (T, C/g, 1, 1), V (O, T/g, k, k)
              + bn(avg(rim(bn(Q * x))))              average     T5  Q (O, C/g, 1, 1)
              + bn(W2 * x)                           twin        T2
              + bn(cat(A * x, B * x))                concat      T4  A and B k x k, half of each group's outputs
              + bn(V1 * x) + bn(H1 * x)              asymmetric  T6  k x 1 and 1 x k
    fused   y = W' * x + b,   all of them folded, chained and summed

The first four are the paper's block; with the other three each of its six transforms can be had on its own.
`rim` pads with what its batch norm makes of a zero, so that the chains fold exactly at the border. U is the identity
plus a weight that starts at zero, T = C. A depthwise block has no 1x1, the plain avg(x) for the fourth branch, and
T = 2C with an ordinary U. Dilation belongs to all but the 1x1s.
Shapes: x (N, C, H, W) -> y (N, O, ceil(H / stride), ceil(W / stride)).
Paper: Ding et al., Diverse Branch Block, CVPR 2021, arXiv:2103.13425, section 3; transforms: section 3.2.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from torch import Tensor, nn

from harness.blocks import algebra
from harness.blocks.algebra import Kernel
from harness.blocks.base import BLOCKS, ConvSpec, FusableBlock
from harness.blocks.parts.branches import ConvBN, Parallel
from harness.blocks.parts.chains import AverageBN, Chain, PointwiseAverage, last_norm
from harness.errors import Unsupported


class Concat(nn.Module):
    """y = bn(cat(A * x, B * x)): two k x k, each for half of every group's outputs; A has the odd one."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.groups = spec.groups
        each = spec.c_out // spec.groups
        if each == 1:
            raise Unsupported(
                f"block dbb has no concat with {spec.groups} groups of {spec.c_out} outputs: one output has no halves",
                remedy="use fewer groups, or concat False",
            )
        self.first, self.second = (
            nn.Conv2d(
                spec.c_in,
                spec.groups * half,
                spec.kernel_size,
                spec.stride,
                spec.padding,
                spec.dilation,
                spec.groups,
                bias=False,
            )
            for half in (each - each // 2, each // 2)
        )
        self.bn = nn.BatchNorm2d(spec.c_out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.bn(algebra.concat(self.first(x_NCHW), self.second(x_NCHW), self.groups, axis=1))
        return y_NCHW

    def kernel(self) -> Kernel:
        return algebra.fold(algebra.concat(self.first.weight, self.second.weight, self.groups), self.bn)


@BLOCKS.register("dbb")
class DBB(FusableBlock):
    paper = (
        "Ding et al., Diverse Branch Block: Building a Convolution as an Inception-like Unit, CVPR 2021, "
        "arXiv:2103.13425, section 3"
    )
    sister = "orepa"
    at_least_one = ("origin", "point", "chain", "average", "twin", "concat", "asymmetric")

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: Annotated[Literal["offline"], "branches on features: each has batch norms of its own"] = "offline",
        gamma_init: Annotated[
            Literal["one", "origin"],
            "first weights of the batch norms that end the branches: 1 in all, or 1 in the origin and 0 in the others",
        ] = "one",
        origin: Annotated[bool, "the k x k kernel that is there in any convolution (T1)"] = True,
        point: Annotated[bool, "a 1x1 (T6); a depthwise place has none"] = True,
        chain: Annotated[bool, "a 1x1 that starts as the identity, then a k x k (T3)"] = True,
        average: Annotated[bool, "a 1x1, then averaging over the k x k taps (T5)"] = True,
        twin: Annotated[bool, "a second k x k (T2)"] = False,
        concat: Annotated[bool, "two k x k, each for half of the outputs (T4)"] = False,
        asymmetric: Annotated[bool, "a k x 1 and a 1 x k (T6)"] = False,
    ) -> None:
        switches = {
            "origin": origin,
            "point": point,
            "chain": chain,
            "average": average,
            "twin": twin,
            "concat": concat,
            "asymmetric": asymmetric,
        }
        super().__init__(spec, reparam=reparam, gamma_init=gamma_init, **switches)
        if gamma_init == "origin" and not origin:
            problem = "block dbb has no origin for gamma_init origin: every branch would start at zero"
            raise Unsupported(problem, remedy="use gamma_init one, or origin True")
        branches = _branches(spec, [name for name, on in switches.items() if on])
        if not branches:
            problem = "block dbb has no 1x1 in a depthwise place, and point is all that was asked for"
            raise Unsupported(problem, remedy="leave another branch True")
        if gamma_init == "origin":
            for name, branch in branches.items():
                nn.init.constant_(last_norm(branch).weight, float(name == "origin"))
        self.branches = Parallel(spec.kernel_size, branches)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.branches(x_NCHW)
        return y_NCHW

    def kernel(self) -> Kernel:
        return self.branches.kernel()


def _branches(spec: ConvSpec, used: Collection[str]) -> dict[str, nn.Module]:
    """The branches whose options are on, in the order of the equation."""
    k, branches = spec.kernel_size, dict[str, nn.Module]()
    if "origin" in used:
        branches["origin"] = ConvBN(spec)
    if "point" in used and not spec.depthwise:
        branches["1x1"] = ConvBN(spec.resized(1))
    if "chain" in used:
        width = 2 * spec.c_in if spec.depthwise else spec.c_in
        branches["1x1-kxk"] = Chain(spec, width, residual=not spec.depthwise)
    if "average" in used and spec.depthwise:
        branches["average"] = AverageBN(spec, spec.padding)
    elif "average" in used:
        branches["1x1-average"] = PointwiseAverage(spec)
    if "twin" in used:
        branches["twin"] = ConvBN(spec)
    if "concat" in used:
        branches["concat"] = Concat(spec)
    if "asymmetric" in used:
        branches |= {"k x 1": ConvBN(spec, (k, 1)), "1 x k": ConvBN(spec, (1, k))}
    return branches
