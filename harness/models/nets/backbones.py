"""Backbones by name: any CNN of timm or torchvision, and the harness's own. Weights are never downloaded."""

from __future__ import annotations

from typing import Any

from torch import nn

from harness.blocks import Block
from harness.errors import HarnessError, Unsupported
from harness.models.nets.base import BACKBONES, IMAGE, LIBRARIES, MAP, Backbone
from harness.records import Json
from harness.registry import unknown


def names() -> list[str]:
    """Every backbone `build` knows by its plain name."""
    return [*BACKBONES, *(name for library in LIBRARIES for name in LIBRARIES[library].names())]


def find(name: str) -> Backbone:
    """What is known of a backbone before it is built. Raises UnknownName for a name that does not exist."""
    if name in BACKBONES:
        return BACKBONES[name]
    for library in LIBRARIES:
        if LIBRARIES[library].knows(name):
            return LIBRARIES[library].backbone(name)
    raise unknown("backbone", name, names())


def source(name: str) -> str:
    """Where the backbone `name` comes from: harness, timm or torchvision."""
    return find(name).source


def build(name: str, num_classes: int = 1000, **options: Json) -> nn.Module:
    """A backbone with fresh weights, in train mode.

    name: one of the harness's own, a model of timm, `tv_` and a classifier of torchvision, or the latter's name alone
        where timm has no model of that name.
    num_classes: width of the classifier; backbones without classes ignore it.
    options: for `layer` c_in, c_out, kernel_size, stride, groups, dilation; otherwise what timm's or torchvision's
        model takes.

    Raises UnknownName for a name that does not exist, HarnessError for options the model does not take.
    """
    for download in ("pretrained", "weights"):
        if options.get(download):
            raise HarnessError(f"{name}: weights are not downloaded", remedy=f"leave out {download}")
    backbone = find(name)
    try:
        return backbone.build(num_classes, options)
    except (TypeError, AssertionError) as refusal:
        raise HarnessError(f"backbone {name} cannot be built: {refusal}", remedy="change its options") from refusal


def checkpoint_activations(model: nn.Module) -> None:
    """Let `model` compute its activations again in backward, as timm or the model itself divides it.

    Raises Unsupported for a model that cannot.
    """
    remedy = "use checkpointing: false, or a backbone that has set_grad_checkpointing"
    switch = getattr(model, "set_grad_checkpointing", None)
    if switch is None:
        raise Unsupported(f"{type(model).__name__} has no gradient checkpointing", remedy=remedy)
    try:
        switch(True)
    except AssertionError as refusal:  # how timm's models without it say so
        raise Unsupported(f"{type(model).__name__}: {refusal}", remedy=remedy) from refusal


def input_shape(model: nn.Module, batch: int = 1, image: int | None = None) -> tuple[int, int, int, int]:
    """(N, C, H, W) of an input that `model` takes.

    image: side in pixels; None means 56 for `layer`, what timm's configuration says for its models, else 224.
    """
    if isinstance(model, Block):
        channels = model.spec.c_in
        return (batch, channels, image or MAP, image or MAP)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    default = getattr(model, "input_side", config.get("input_size", (3, IMAGE, IMAGE))[-1])
    channels = getattr(model, "in_chans", channels)
    side = image or default
    return (batch, channels, side, side)
