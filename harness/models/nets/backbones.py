"""Backbones by name: any CNN of timm or torchvision, and the harness's own. Weights are never downloaded."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from harness.blocks import Block
from harness.errors import HarnessError, Unsupported
from harness.memory import build_on_meta
from harness.models.nets import diracnet, sesr
from harness.models.nets import plain_vgg as plain
from harness.models.nets import wide_resnet as wide
from harness.models.nets.own import OwnNet
from harness.records import Json
from harness.registry import unknown

SUPER_RESOLUTION: dict[str, Callable[..., OwnNet]] = {
    f"sesr_{net}_x{scale}": partial(sesr.SESR, net, scale) for net in sesr.NETS for scale in sesr.SCALES
}
"""Luma in, a larger luma out."""

CLASSIFIERS: dict[str, Callable[..., OwnNet]] = {
    **{f"plain_{name}": partial(plain.PlainNet, name) for name in plain.SIZES},
    **{f"wide_resnet18_{name}": partial(wide.WideResNet18, factor) for name, factor in wide.FACTORS.items()},
    **{f"diracnet{depth}": partial(diracnet.DiracNet, depth) for depth in diracnet.LAYERS},
    **{f"diracnet{name}_cifar": partial(diracnet.CifarDiracNet, *size) for name, size in diracnet.CIFAR.items()},
}

OWN: dict[str, Callable[..., nn.Module]] = {"layer": plain.Layer, **CLASSIFIERS, **SUPER_RESOLUTION}
"""The harness's own backbones."""

TORCHVISION = "tv_"

AUXILIARY = ("googlenet", "inception_v3")
"""torchvision's networks with classifiers beside the last one, which timm's have not: they stay off."""

CONV_CLASSIFIERS = {"squeezenet1_0": "classifier.1", "squeezenet1_1": "classifier.1"}
"""torchvision's networks that classify by a convolution, and its name."""

LAYER_MAP = 56
IMAGE = 224


def names() -> list[str]:
    """Every backbone `build` knows by its plain name."""
    return [*OWN, *timm.list_models(), *_of_torchvision()]


def source(name: str) -> str:
    """Where the backbone `name` comes from: harness, timm or torchvision."""
    if name in OWN:
        return "harness"
    return "torchvision" if name in _of_torchvision() else "timm"


def has_classes(name: str) -> bool:
    """Whether the backbone ends in a classifier; a single layer gives maps, super-resolution gives images."""
    return name != "layer" and name not in SUPER_RESOLUTION


def image_channels(name: str) -> int:
    """Of the images that the backbone takes: 1 for luma, else 3. `layer` takes no images but its c_in."""
    return sesr.SESR.in_chans if name in SUPER_RESOLUTION else OwnNet.in_chans


def _of_torchvision() -> dict[str, str]:
    """Name here -> torchvision's own, which is a name here as well where timm has no such model."""
    known = torchvision.models.list_models(module=torchvision.models)  # without quantised, video, detection, ...
    prefixed = {f"{TORCHVISION}{name}": name for name in known}
    return {**prefixed, **{name: name for name in known if not timm.is_model(name)}}


def build(name: str, num_classes: int = 1000, **options: Json) -> nn.Module:
    """A backbone with fresh weights, in train mode.

    name: one of the harness's own (`OWN`), a model of timm, `tv_` and a classifier of torchvision, or the latter's
        name alone where timm has no model of that name.
    num_classes: width of the classifier; backbones without classes ignore it.
    options: for `layer` c_in, c_out, kernel_size, stride, groups, dilation; otherwise what timm's or torchvision's
        model takes.

    timm starts the last batch norm of a residual branch at zero in some families. Here they start at one
    (zero_init_last=False): a block brings its own norm at one, so all variants start alike, and no branch
    is dead in the first step.

    Raises UnknownName for a name that does not exist, HarnessError for options the model does not take.
    """
    for download in ("pretrained", "weights"):
        if options.get(download):
            raise HarnessError(f"{name}: weights are not downloaded", remedy=f"leave out {download}")
    try:
        if name in OWN:
            return OWN[name](num_classes, **options) if has_classes(name) else OWN[name](**options)
        if name in _of_torchvision():
            return _torchvision(_of_torchvision()[name], num_classes, options)
        return _timm(name, num_classes, options)
    except (TypeError, AssertionError) as refusal:
        raise HarnessError(f"backbone {name} cannot be built: {refusal}", remedy="change its options") from refusal


def _torchvision(name: str, num_classes: int, options: dict[str, Json]) -> nn.Module:
    one_output = {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
    with _NumbersOnCPU():
        model: nn.Module = torchvision.models.get_model(name, num_classes=num_classes, **{**one_output, **options})
    model.to(torch.get_default_device())  # a table of relative positions is a buffer
    if name in CONV_CLASSIFIERS:
        model.pretrained_cfg = {"classifier": CONV_CLASSIFIERS[name]}  # type: ignore[assignment]  # as timm says it
    return model


class _NumbersOnCPU(TorchFunctionMode):
    """What a constructor counts with is on the CPU, whatever the default device: on meta it could not be read.

    torchvision's RegNets find the widths of their layers by torch.arange.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        on_cpu = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **{**on_cpu, **(kwargs or {})})


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
    if isinstance(model, Block):
        channels = model.spec.c_in
        return (batch, channels, image or LAYER_MAP, image or LAYER_MAP)
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    default = config.get("input_size", (3, IMAGE, IMAGE))[-1]
    if isinstance(model, plain.Layer):
        default = LAYER_MAP
    else:
        channels = getattr(model, "in_chans", channels)
    side = image or default
    return (batch, channels, side, side)
