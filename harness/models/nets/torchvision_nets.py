"""torchvision's classifiers: `tv_` and their name there, or that name alone where timm has no such model."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from harness.models.nets.base import BACKBONES, Backbone
from harness.records import Json

PREFIX = "tv_"

AUXILIARY = ("googlenet", "inception_v3")
"""Networks with classifiers beside the last one, which timm's have not: they stay off."""

CONV_CLASSIFIERS = {"squeezenet1_0": "classifier.1", "squeezenet1_1": "classifier.1"}
"""Networks that classify by a convolution, and its name."""


def create(name: str, num_classes: int, **options: Json) -> nn.Module:
    """The model that torchvision calls so, with fresh weights, in train mode."""
    one_output = {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
    with _NumbersOnCPU():
        model: nn.Module = torchvision.models.get_model(name, num_classes=num_classes, **{**one_output, **options})
    model.to(torch.get_default_device())  # a table of relative positions is a buffer
    if name in CONV_CLASSIFIERS:
        vars(model)["pretrained_cfg"] = {"classifier": CONV_CLASSIFIERS[name]}  # as timm says it
    return model


class _NumbersOnCPU(TorchFunctionMode):
    """What a constructor counts with is on the CPU, whatever the default device: on meta it could not be read.

    torchvision's RegNets find the widths of their layers by torch.arange.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        on_cpu = {"device": "cpu"} if func in (torch.arange, torch.tensor) else {}
        return func(*args, **{**on_cpu, **(kwargs or {})})


for _name in torchvision.models.list_models(module=torchvision.models):  # without quantised, video, detection, ...
    _backbone = Backbone(partial(create, _name), source="torchvision")
    BACKBONES.register(f"{PREFIX}{_name}")(_backbone)
    if not timm.is_model(_name):
        BACKBONES.register(_name)(_backbone)
