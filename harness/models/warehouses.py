"""Put the kernels of a network into warehouses that its layers share.

    new = swap_in_warehouses(model, plan(model, ratio="1/2"))

Every warehouse is in `new.warehouses`, once; the layers that took a place point to theirs. A copy or a pickle of the
network has warehouses of its own; of nn.DataParallel's replicas, which point to the first device's, do without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness import blocks
from harness.blocks import ConvSpec
from harness.blocks.parts.warehouse import Layout, Warehouse, layout_for
from harness.blocks.parts.warehouse_layers import LEAST_WIDTH, AttentionSettings, KWConv2d, KWLayer, KWLinear
from harness.errors import HarnessError, Unsupported
from harness.models.candidates import Layers, nothing_matched
from harness.models.layers import LayerChange, label, padding_of, replace_module
from harness.models.tracing import trace
from harness.models.warehouse_plans import PAPER, Layer, Plan, layers_of, plan
from harness.records import Json
from harness.where import PRESETS, Where

__all__ = ["Plan", "WarehouseReport", "plan", "swap_in_warehouses", "swap_with_warehouses"]


MOST_ATTENTION = 100
"""Attentions of so many times the network's own parameters cannot be meant; the paper's add less than half."""


@dataclass(frozen=True)
class WarehouseReport:
    """A warehouse of `cells` cells of c_out x c_in, who shares it, and what it costs in parameters.

    warning: that the attentions are larger than what they attend to; else empty.
    """

    name: str
    cells: int
    c_out: int
    c_in: int
    layers: tuple[str, ...]
    cell_parameters: int
    attention_parameters: int

    @property
    def summary(self) -> str:
        """In a line."""
        share = f"{len(self.layers)} layer{'s' if len(self.layers) > 1 else ''}"
        size = f"{self.cells} cells of {self.c_out} x {self.c_in}, {self.cell_parameters:,} parameters"
        more = ", more than it attends to" if self.warning else ""
        return f"{self.name}: {share}, {size}; attention {self.attention_parameters:,}{more}"

    @property
    def warning(self) -> str:
        if self.attention_parameters <= self.cell_parameters:
            return ""
        size = f"{self.cells} cells of {self.c_out} x {self.c_in}"
        return f"{self.name}: {self.attention_parameters:,} parameters attend to {self.cell_parameters:,} in {size}"


class Warehouses(nn.ModuleList):
    """All warehouses of a network."""

    def forward(self, x: Tensor) -> Tensor:
        return x  # an nn.Sequential that holds them runs them like a layer


def swap_in_warehouses(model: nn.Module, plan: Plan) -> nn.Module:
    """A new model whose planned layers take their kernels from warehouses; `model` is left as it is.

    Stride, padding, dilation, groups, dtype, device and training flag stay, and a bias where there was one, which
    starts at zero; the backbone's norms stay. Weights are fresh, drawn from torch's global generator warehouse by
    warehouse. The new model's `swap_report` is a tuple of `LayerChange`, one per convolution and per linear layer
    that was converted, and `warehouse_report` a tuple of `WarehouseReport`.

    Raises Unsupported when a warehouse does not come out even, and for a model that has warehouses.
    """
    if hasattr(model, "warehouses"):
        raise Unsupported("the model has warehouses already", remedy="swap into the model as it was built")
    layouts = {name: _layout(model, plan, name, members) for name, members in plan.warehouses.items()}
    _refuse_oversized_attention(model, layouts)
    new = deepcopy(model)
    changes: dict[str, LayerChange] = {}
    warehouses, reports = Warehouses(), []
    for name, members in plan.warehouses.items():
        old = [_layer(new, member) for member in members]
        warehouse, made = _build_warehouse(layouts[name], old, plan.settings)
        warehouses.append(warehouse)
        reports.append(_report(name, members, layouts[name], made))
        for member, before, after in zip(members, old, made, strict=True):
            new = replace_module(new, member, after)
            changes[member] = LayerChange(member, label(before), f"{after.label} of {name}", "shares a warehouse")
    for name, layer in layers_of(model):
        if name not in changes and isinstance(layer, nn.Conv2d):
            changes[name] = LayerChange(name, label(layer), label(layer), plan.reasons[name])
    new.warehouses = warehouses
    new.swap_report = tuple(changes[name] for name in plan.layers if name in changes)  # type: ignore[assignment]
    new.warehouse_report = tuple(reports)  # type: ignore[assignment]
    return new


def swap_with_warehouses(model: nn.Module, block: str, rule: Where, options: dict[str, Json]) -> nn.Module:
    """The paper's plan of warehouses, or one for each stage of the layers that `rule` picks; norms stay.

    block: one with the options `ratio` and `attention_norm`, which say how its warehouses are made.
    """
    with torch.device("meta"):
        blocks.create(block, 16, 16, **options)  # refuses options that it does not have
    named: frozenset[str] | None = None
    if rule != PRESETS[PAPER]:
        layers = Layers(model, trace(model, training=True))
        chosen = [(use, *layers.choose(use, rule, block)) for use in layers.uses]
        named = frozenset(use.name for use, picked, _ in chosen if picked is not None)
        if not named:
            raise nothing_matched(layers, rule, [LayerChange(use.name, "", "", reason) for use, _, reason in chosen])
    ratio, norm = options.get("ratio", 1), options.get("attention_norm")
    return swap_in_warehouses(model, plan(model, ratio, PAPER if named is None else named, norm))


def _layout(model: nn.Module, plan: Plan, name: str, members: Iterable[str]) -> Layout:
    try:
        return layout_for([_spec(_layer(model, member)) for member in members], plan.ratios[name])
    except Unsupported as refusal:
        raise Unsupported(f"warehouse {name}: {refusal.problem}", remedy=refusal.remedy) from refusal


def _refuse_oversized_attention(model: nn.Module, layouts: Mapping[str, Layout]) -> None:
    """Before memory runs out: channels without a common divisor cut kernels into so many cells (GoogLeNet's)."""
    least = {
        name: LEAST_WIDTH * (layout.cells + 1) * sum(part.rows for part in layout.layers)
        for name, layout in layouts.items()
    }
    whole = sum(parameter.numel() for parameter in model.parameters())
    if sum(least.values()) > MOST_ATTENTION * whole:
        name = max(least, key=least.__getitem__)
        cells = f"{layouts[name].cells} cells of {layouts[name].c_out} x {layouts[name].c_in}"
        raise Unsupported(
            f"attentions of {least[name]:,} parameters and more for warehouse {name}, {cells}: its layers' channels"
            " have no larger common divisor",
            remedy="name fewer layers with where: {name: [...]}, a larger ratio, or a backbone of regular widths",
        )


def _layer(model: nn.Module, name: str) -> Layer:
    layer = model.get_submodule(name)
    if not isinstance(layer, Layer):
        raise HarnessError(f"{name} is no convolution or linear layer here", remedy="plan for this very model")
    return layer


def _spec(layer: Layer) -> ConvSpec:
    if isinstance(layer, nn.Linear):
        return ConvSpec(layer.in_features, layer.out_features, 1)
    padding = padding_of(layer)
    assert padding is not None
    size, stride, dilation = layer.kernel_size[0], layer.stride[0], layer.dilation[0]
    return ConvSpec(layer.in_channels, layer.out_channels, size, stride, layer.groups, dilation).padded(padding)


def _build_warehouse(
    layout: Layout, layers: list[Layer], settings: AttentionSettings
) -> tuple[Warehouse, list[KWLayer]]:
    """A warehouse and the layers that take the places of `layers`."""
    weight = layers[0].weight
    # Made on the CPU whatever the device, so that a seed gives the same weights everywhere.
    with torch.device("meta" if weight.is_meta else "cpu"):
        warehouse = Warehouse(layout)
        made: list[KWLayer] = []
        for index, layer in enumerate(layers):
            bias = layer.bias is not None
            if isinstance(layer, nn.Linear):
                made.append(KWLinear(layer.in_features, layer.out_features, warehouse, index, settings, bias))
            else:
                made.append(KWConv2d(_spec(layer), warehouse, index, settings, bias))
    for new, old in zip(made, layers, strict=True):
        new.to(old.weight.device, old.weight.dtype).train(old.training)
    return warehouse.to(weight.device, weight.dtype), made


def _report(name: str, members: list[str], layout: Layout, layers: list[KWLayer]) -> WarehouseReport:
    attention = sum(parameter.numel() for layer in layers for parameter in layer.attention.parameters())
    size = layout.cells * layout.c_out * layout.c_in
    return WarehouseReport(name, layout.cells, layout.c_out, layout.c_in, tuple(members), size, attention)
