"""Squeeze-and-excitation behind a block's sum, as re-parameterized networks have it: the option, and its module."""

from __future__ import annotations

from typing import Annotated

from torch import nn
from torchvision.ops import SqueezeExcitation

SE = Annotated[bool, "squeeze-and-excitation behind the sum, with a 16th of the channels inside"]


def squeeze_excitation(channels: int) -> nn.Module:
    """y * sigmoid(U relu(V mean(y) + v) + u), V (channels // 16, channels); one channel inside where that is none."""
    squeezed: nn.Module = SqueezeExcitation(channels, max(1, channels // 16))
    return squeezed
