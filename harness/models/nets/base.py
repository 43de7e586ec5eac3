"""What a backbone is: how a network is built by its name, and what is known of it before it is built.

A family of networks is one file of this folder, which adds its members to `BACKBONES`; how a network of our own does
that is in own.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import nn

from harness.records import Json
from harness.registry import Registry

HARNESS = "harness"
"""The source of our own networks."""

IMAGE, MAP = 224, 56
"""Pixels of the side of what a network, and a single layer, is shown where nobody says another size."""


@dataclass(frozen=True)
class SingleLayer:
    """A backbone that is one convolution: a block is not put into it but takes its place."""

    options: Mapping[str, Json]
    """What a suite may say of it: option -> type, least value and default."""
    batch_size: int
    image_size: int
    kernel_size: int
    """These three: when a suite does not say."""

    def place(self, kernel_size: int | None, options: Mapping[str, Json]) -> dict[str, Json]:
        """The convolution that a block takes the place of, as `blocks.create` names its sizes."""
        defaults = {name: option["default"] for name, option in self.options.items()}
        return {"kernel_size": kernel_size or self.kernel_size, **defaults, **options}


@dataclass(frozen=True)
class Backbone:
    """A network by name. `create(num_classes, **options)`, or `create(**options)` where there are no classes."""

    create: Callable[..., nn.Module]
    source: str = HARNESS
    """Where it comes from."""
    has_classes: bool = True
    """Whether it ends in a classifier; others give maps or images."""
    image_channels: int = 3
    """Of the images that it takes."""
    single: SingleLayer | None = None

    def build(self, num_classes: int, options: Mapping[str, Json]) -> nn.Module:
        return self.create(num_classes, **options) if self.has_classes else self.create(**options)

    def channels(self, options: Mapping[str, Json]) -> int:
        """Of what it takes as an input, an image or a layer's map."""
        if self.single is None:
            return self.image_channels
        c_in: int = self.single.place(None, options)["c_in"]
        return c_in


BACKBONES: Registry[Backbone] = Registry("backbone")


class Library(ABC):
    """A collection of networks that others add to: its names are asked for, not registered one by one."""

    source: ClassVar[str]

    @abstractmethod
    def names(self) -> list[str]:
        """Of all its networks, in its own order."""

    @abstractmethod
    def knows(self, name: str) -> bool:
        """Whether `create` can build it; some go by names that are not listed."""

    @abstractmethod
    def create(self, name: str, num_classes: int, **options: Json) -> nn.Module:
        """A network with fresh weights, in train mode. Raises TypeError for options that it does not take."""

    def backbone(self, name: str) -> Backbone:
        return Backbone(partial(self.create, name), self.source)


LIBRARIES: Registry[Library] = Registry("library of backbones")
