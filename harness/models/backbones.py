"""Backbones by name: any CNN of timm, the plain RepVGG topologies, and a single layer. Weights are never downloaded."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from torch import nn

from harness.errors import HarnessError, Unsupported
from harness.memory import build_on_meta
from harness.models.plain import WIDTHS, Layer, PlainNet
from harness.records import Json
from harness.registry import unknown

OWN: dict[str, Callable[..., nn.Module]] = {
    "layer": Layer,
    **{f"plain_{size}": partial(PlainNet, size) for size in WIDTHS},
}
"""The harness's own backbones."""

LAYER_MAP = 56
IMAGE = 224


def names() -> list[str]:
    """Every backbone `build` knows by its plain name."""
    return [*OWN, *timm.list_models()]


def build(name: str, num_classes: int = 1000, **options: Json) -> nn.Module:
    """A backbone with fresh weights, in train mode.

    name: `plain_a0`, `plain_a1`, `plain_b0`, `layer`, or a model of timm.
    num_classes: width of the classifier; `layer` has none and ignores it.
    options: for `layer` c_in, c_out, kernel_size, stride, groups, dilation; otherwise what timm's model takes.

    timm starts the last batch norm of a residual branch at zero in some families. Here they start at one
    (zero_init_last=False): a block brings its own norm at one, so all variants start alike, and no branch
    is dead in the first step.

    Raises UnknownName for a name that does not exist, HarnessError for options the model does not take.
    """
    if options.get("pretrained"):
        raise HarnessError(f"{name}: weights are not downloaded", remedy="leave out pretrained")
    try:
        if name in OWN:
            return OWN[name](**options) if name == "layer" else OWN[name](num_classes, **options)
        return _timm(name, num_classes, options)
    except (TypeError, AssertionError) as refusal:
        raise HarnessError(f"backbone {name} cannot be built: {refusal}", remedy="change its options") from refusal


def _timm(name: str, num_classes: int, options: dict[str, Json]) -> nn.Module:
    # a colon or a slash is a place to download from (hf-hub:..., local-dir:...)
    if ":" in name or "/" in name or not timm.is_model(name):
        raise unknown("backbone", name, names())
    create = partial(timm.create_model, name, pretrained=False, num_classes=num_classes, **options)
    sketch = build_on_meta(create)
    model: nn.Module
    if "zero_init_last" in inspect.signature(type(sketch).__init__).parameters:
        with contextlib.suppress(TypeError):  # a few families say it themselves, and not twice
            model = create(**{"zero_init_last": False, **options})
            return model
    model = create()
    return model


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
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    default = config.get("input_size", (3, IMAGE, IMAGE))[-1]
    if isinstance(model, Layer):
        default = LAYER_MAP
    else:
        channels = getattr(model, "in_chans", channels)
    side = image or default
    return (batch, channels, side, side)
