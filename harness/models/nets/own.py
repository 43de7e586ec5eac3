"""What the harness's own networks have in common, and how they get their names:

class Tiny(OwnNet):
    stem_names = ("stem",)

    def __init__(self, width: int, num_classes: int = 1000) -> None:
        ...

register("tiny_8", Tiny, 8)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from inspect import signature
from typing import ClassVar

from timm.models import checkpoint_seq
from torch import Tensor, nn

from harness.models.nets.base import BACKBONES, Backbone
from harness.records import Json


class OwnNet(nn.Module):
    """A network of the harness; it says about itself what timm's say in a configuration."""

    stem_names: tuple[str, ...]
    """The layers that are its stem, by name."""
    in_chans: int = 3
    """Channels of an input image."""
    has_classes: ClassVar[bool] = True
    """Whether it ends in a classifier; the constructor's last argument is then `num_classes`, its width."""
    slot_options: Mapping[str, Mapping[str, Json]] = {}
    """Layer -> options that the network's paper sets there, for a block that has them."""

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As timm's models have it: in training each layer that `x` goes `through` is computed again in backward."""
        self.grad_checkpointing = enable

    def through(self, layers: nn.Sequential, x_NCHW: Tensor, staged: bool = False) -> Tensor:
        """`layers` one after the other; staged: each of them is itself a Sequential of layers."""
        if self.grad_checkpointing and self.training:
            y_NCHW: Tensor = checkpoint_seq(layers, x_NCHW, flatten=staged)
        else:
            y_NCHW = layers(x_NCHW)
        return y_NCHW


def register(name: str, net: type[OwnNet], *arguments: object) -> None:
    """Give ``net(*arguments, num_classes)`` this name; a net without classes is ``net(*arguments)``.

    Raises TypeError, saying what is missing, for a net that declares too little.
    """
    if not hasattr(net, "stem_names"):
        raise TypeError(f'{net.__name__} does not say its stem: write stem_names = ("stem.conv",) or () into the class')
    if net.has_classes and "num_classes" not in signature(net).parameters:
        raise TypeError(f"{net.__name__} takes no num_classes: take it last, or write has_classes = False")
    create = partial(net, *arguments)
    BACKBONES.register(name)(Backbone(create, has_classes=net.has_classes, image_channels=net.in_chans))
