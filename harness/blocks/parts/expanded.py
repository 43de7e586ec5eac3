"""ExpandNets: a layer trained as a row of wider ones, which fold into it; what its blocks have in common.

    train   y = bn(F_n * (... (F_1 * pad(x))))     offline: the factors on the feature map (the paper)
            y = bn(W * x),   W = F_n ... F_1       online: composed as kernels, one convolution

A block says how wide the map is between the factors and how large they are. All have the block's groups, and a bias
each where asked for. `pad` puts all the zeros in front of F_1: with some of them in front of a later one the rim would
be another function, biases or not.
Paper: Guo et al., ExpandNets, NeurIPS 2020, arXiv:1811.10495.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from harness.blocks.base import ConvSpec
from harness.blocks.declared import Choice
from harness.blocks.parts.composed import Chain, ComposedBlock, norm_behind

PAPER = (
    "Guo et al., ExpandNets: Linear Over-parameterization to Train Compact Convolutional Networks, NeurIPS 2020, "
    "arXiv:1811.10495"
)
REPARAM = Annotated[
    Literal["offline", "online"], "the factors on features (the paper), or multiplied into one kernel in every step"
]
RATE = Annotated[Literal[2, 4, 8], "how many times as wide the map is between the factors"]
EXPAND_INPUT = Annotated[
    bool, "whether the first factor widens the input; the first layer of the authors' CIFAR networks does not"
]
BIAS = Annotated[bool, "a bias in each factor"]
NORM = Annotated[bool, "a batch norm behind the last factor"]


class ExpandedBlock(ComposedBlock):
    """A subclass calls `_expand` after `super().__init__(spec, **options)`."""

    paper = PAPER

    def __init__(self, spec: ConvSpec, *, reparam: str, **options: Choice) -> None:
        super().__init__(spec, reparam=reparam, **options)
        self.reparam = reparam

    def _expand(self, widths: Sequence[int], sizes: Sequence[int], *, bias: bool, norm: bool) -> None:
        """widths: channels in front of, between and behind the factors; sizes: the factors' kernel sizes."""
        self.linear = Chain(self.spec, widths, sizes, bias)
        self.bn = norm_behind(norm, self.spec.c_out)


class ExpandedConv(ExpandedBlock):
    """A convolution expanded, with batch norm and without biases where nothing else is asked for."""

    def __init__(
        self,
        spec: ConvSpec,
        *,
        reparam: REPARAM = "offline",
        rate: RATE = 4,
        expand_input: EXPAND_INPUT = True,
        bias: BIAS = False,
        norm: NORM = True,
    ) -> None:
        super().__init__(spec, reparam=reparam, rate=rate, expand_input=expand_input, bias=bias, norm=norm)
        widths, sizes = self.row(spec.c_in * (rate if expand_input else 1), spec.c_out * rate)
        self._expand((spec.c_in, *widths, spec.c_out), sizes, bias=bias, norm=norm)

    def row(self, first: int, later: int) -> tuple[Sequence[int], Sequence[int]]:
        """The channels between the factors, `first` behind the first and `later` behind others; and kernel sizes."""
        raise NotImplementedError
