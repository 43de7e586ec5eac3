"""Which layers of a network share which warehouse: the networks of the KernelWarehouse paper, and any other.

`kw-paper` for timm's ResNets, ConvNeXts and MobileNetV2s is what the authors' configurations do, layer by layer; for
any other network, and where the layers are given by name, the general rule: a warehouse for each stage
(warehouse_stages.py), depthwise, grouped and dense convolutions apart because the common divisor of their channels
would be 1; stem, classifier and linear layers static.

Published are ResNet18 (1/4 to 4), ResNet50 (1/2, 1, 4), ConvNeXt-T (1) and MobileNetV2 (1/2, 1, 4); their relatives
and other ratios follow the same rules: a basis in every bottleneck ResNet below 1, MobileNetV2 at 2 as at 4 and at
1/4 as at 1/2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from torch import nn

from harness import blocks
from harness.blocks.parts.per_sample import Schedule
from harness.blocks.parts.warehouse import Ratios, ratio_of
from harness.blocks.parts.warehouse_layers import AttentionSettings
from harness.errors import HarnessError, Unsupported
from harness.models.layers import has_own_reparameterization, padding_of, within
from harness.models.warehouse_stages import Stages, find_stages

PAPER = "kw-paper"
STATIC = "static"
LAST = "linear"
"""The warehouse of MobileNetV2's classifier."""

Layer = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Plan:
    """A warehouse's name or "static" for every convolution and linear layer, in the order of `named_modules`.

    reasons: why a layer is static. ratios: of each warehouse.
    """

    layers: Mapping[str, str]
    reasons: Mapping[str, str]
    ratios: Mapping[str, Ratios]
    settings: AttentionSettings

    @property
    def warehouses(self) -> dict[str, list[str]]:
        """The layers of each warehouse, in first-seen order."""
        members: dict[str, list[str]] = {}
        for name, warehouse in self.layers.items():
            if warehouse != STATIC:
                members.setdefault(warehouse, []).append(name)
        return members


@dataclass(frozen=True)
class _Family:
    """Networks that are treated alike. `warehouse` of a layer's name and the ratio; None: static."""

    warehouse: Callable[[str, Fraction], str | None]
    settings: Callable[[Fraction], AttentionSettings] = lambda b: AttentionSettings()


def plan(
    model: nn.Module,
    ratio: str | float | Fraction = 1,
    rule: Literal["kw-paper"] | Collection[str] = PAPER,
    attention_norm: Literal["batch", "layer"] | None = None,
) -> Plan:
    """ratio: b, a whole number or 1/2, 1/3, 1/4. rule: the paper's layers, or the names of convolutions.

    attention_norm: None for the paper's. Raises Unsupported for a ratio that cannot be, HarnessError when there is
    nothing to put into a warehouse.
    """
    b = ratio_of(ratio)
    family = _family_of(model)
    if rule == PAPER and family is not None:
        layers, reasons = _published(model, family, b)
    else:
        layers, reasons = _by_stages(model, None if rule == PAPER else frozenset(rule))
    if all(warehouse == STATIC for warehouse in layers.values()):
        why = "; ".join(sorted(set(reasons.values()))) or "it has no convolution that is no part of a block"
        problem = f"no layer of this {type(model).__name__} can share a warehouse: {why}"
        raise HarnessError(problem, remedy="use another backbone, or name convolutions with where: {name: [...]}")
    settings = family.settings(b) if family is not None else AttentionSettings()
    if attention_norm is not None:
        settings = replace(settings, norm=attention_norm)
    ratios = {name: _ratios(name, b) for name in layers.values() if name != STATIC}
    return Plan(layers, reasons, ratios, settings)


def layers_of(model: nn.Module) -> Iterator[tuple[str, Layer]]:
    """Every convolution and linear layer that is no part of a block or of what re-parameterizes itself."""
    closed: list[str] = []
    for name, module in model.named_modules():
        if any(within(name, each) for each in closed):
            continue
        if isinstance(module, blocks.Block) or (name and has_own_reparameterization(module)):
            closed.append(name)
        elif isinstance(module, Layer):
            yield name, module


def cannot(layer: Layer) -> str:
    """Why a layer's kernels cannot come from a warehouse; empty when they can."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks of its own"
    if type(layer) is nn.Linear:
        return ""
    if type(layer) is not nn.Conv2d:
        return f"{type(layer).__name__} is not a plain Conv2d or Linear"
    if layer.padding_mode != "zeros":
        return f"its padding is {layer.padding_mode}"
    if padding_of(layer) is None:
        return f"its padding is {layer.padding}, which differs between sides"
    if any(len(set(sizes)) > 1 for sizes in (layer.kernel_size, layer.stride, layer.dilation)):
        return "its kernel, stride or dilation differs between rows and columns"
    return ""


def _published(model: nn.Module, family: _Family, b: Fraction) -> tuple[dict[str, str], dict[str, str]]:
    layers, reasons = {}, {}
    for name, layer in layers_of(model):
        warehouse = family.warehouse(name, b)
        why = cannot(layer) if warehouse is not None else f"static in {PAPER}"
        layers[name] = STATIC if why or warehouse is None else warehouse
        if why:
            reasons[name] = why
    return layers, reasons


def _by_stages(model: nn.Module, picked: frozenset[str] | None) -> tuple[dict[str, str], dict[str, str]]:
    """The general rule; a stem or classifier that `picked` names is put in, with a warehouse of its own."""
    stages = find_stages(model)
    known = dict(layers_of(model))
    for name in picked or ():
        if not isinstance(known.get(name), nn.Conv2d):
            raise HarnessError(f"{name!r} is no convolution of this model", remedy="name convolutions")
    layers, reasons = {}, {}
    for name, layer in known.items():
        why = _why_static(name, layer, stages, picked)
        if why:
            reasons[name] = why
        stage = f"stage{stages.of[name]}" if name in stages.of else stages.apart.get(name, "")
        layers[name] = STATIC if why else stage + _kind(layer)
    return layers, reasons


def _why_static(name: str, layer: Layer, stages: Stages, picked: frozenset[str] | None) -> str:
    """Why a layer is static; empty when it is not."""
    if isinstance(layer, nn.Linear):
        return "linear layers are static but in networks of the paper"
    if picked is not None and name not in picked:
        return "not picked"
    if picked is None and name in stages.apart:
        return f"the {stages.apart[name]} is static"
    why = cannot(layer)
    if why and picked is not None:
        raise Unsupported(f"layer {name}: {why}", remedy="leave it out of where")
    return why or stages.stays.get(name, "")


def _kind(layer: Layer) -> str:
    if not isinstance(layer, nn.Conv2d) or layer.groups == 1:
        return ""
    return "_dw" if layer.groups == layer.in_channels else "_grouped"


def _ratios(warehouse: str, b: Fraction) -> Ratios:
    """As in the authors' configurations: below 1 dense cells are halved, the stem and depthwise layers stay at 1."""
    if b >= 1:
        return Ratios(b)
    if warehouse == "stem" or warehouse.endswith(("_dw", "_grouped")):
        return Ratios(Fraction(1))
    if warehouse == LAST:
        return Ratios(b, c_in=Fraction(1, 40))
    return Ratios(b, c_in=Fraction(1, 2), c_out=Fraction(1, 2))


def _resnet(bottleneck: bool) -> Callable[[str, Fraction], str | None]:
    def warehouse(name: str, b: Fraction) -> str | None:
        found = re.fullmatch(r"layer(\d)\.(\d+)\.(conv\d|downsample\.\d)", name)
        if not found:
            return None
        stage = int(found[1]) - 1
        if found[2] == "0" and found[3] not in ("conv2", "conv3"):  # they work on the channels of the stage before
            if stage:
                return f"stage{stage - 1}"
            return None if bottleneck else "stage0"
        return f"stage{stage}"

    return warehouse


def _convnext(name: str, b: Fraction) -> str | None:
    if name.startswith("stem."):
        return "stem"
    found = re.fullmatch(r"stages\.(\d+)\.(downsample\.1|blocks\.\d+\.(conv_dw|mlp\.fc[12]))", name)
    if not found:
        return None
    if found[3] is None:
        return f"ds{found[1]}"
    return f"stage{found[1]}_{'dw' if found[3] == 'conv_dw' else 'pw'}"


def _mobilenet(name: str, b: Fraction) -> str | None:
    if name == "classifier":
        return LAST if b < 1 else None
    if name == "conv_stem":
        return "stem"
    found = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(conv_dw|conv_pw|conv_pwl)", name)
    if name != "conv_head" and not found:
        return None
    setting, unit, layer = (int(found[1]), int(found[2]), found[3]) if found else (6, 0, "conv_pwl")
    stage = 1 if setting == 0 else setting + (unit > 0)
    if layer == "conv_dw":
        return f"stage{stage}_dw"
    if b == 1:
        return f"stage{stage}_pw"
    if b < 1 and stage < 6:
        return None
    return f"stage{stage}_pw{int(layer == 'conv_pwl' or setting == 0)}"  # setting 0 has no expansion


def _bottleneck_settings(b: Fraction) -> AttentionSettings:
    return AttentionSettings(basis=Fraction(1, 16) if b < 1 else None)


def _mobilenet_settings(b: Fraction) -> AttentionSettings:
    return AttentionSettings(reduction=Fraction(1, 32) if b < 1 else Fraction(1, 16), schedule=Schedule(1, 0, 15, 150))


def _family_of(model: nn.Module) -> _Family | None:
    """By timm's class and the name it was created by."""
    config = getattr(model, "pretrained_cfg", None) or {}
    architecture = config.get("architecture", "")
    if not type(model).__module__.startswith("timm."):
        return None
    if type(model).__name__ == "ResNet" and re.fullmatch(r"resnet\d+[a-z]?", architecture):
        bottleneck = hasattr(model.get_submodule("layer1.0"), "conv3")
        return _Family(_resnet(bottleneck), _bottleneck_settings) if bottleneck else _Family(_resnet(bottleneck))
    if architecture.startswith("convnext_"):
        return _Family(_convnext, lambda b: AttentionSettings(norm="layer"))
    if architecture.startswith("mobilenetv2_"):
        return _Family(_mobilenet, _mobilenet_settings)
    return None
