"""Put a block in the place of a model's convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import nn

from harness import blocks
from harness import where as rules
from harness.errors import Unsupported
from harness.models import native
from harness.models.candidates import Layers, nothing_matched
from harness.models.layers import (
    LayerChange,
    label,
    padding_of,
    replace_module,
    without_norm,
)
from harness.models.tracing import ConvUse, trace
from harness.models.warehouses import swap_with_warehouses
from harness.records import Json
from harness.registry import Registry
from harness.where import Where

NetworkSwap = Callable[[nn.Module, str, Where, dict[str, Json]], nn.Module]
"""model, block, rule, options -> a new model with a `swap_report`."""

SHARED_STATES: Registry[NetworkSwap] = Registry("shared state of a network's layers")
"""What puts a block into a network as a whole, by the `shared_state` that the block declares."""

SHARED_STATES.register("warehouses")(swap_with_warehouses)


def swap(
    model: nn.Module,
    block: str = "orepa",
    where: Where | Json = None,
    kernel_size: int | None = None,
    **block_options: Json,
) -> nn.Module:
    """A new model in which `block` has taken the place of convolutions; `model` is left as it is.

    block: a name of `harness.blocks`, or `native` for a copy of a timm model that re-parameterizes itself.
    where: which convolutions; None for plain square 3x3 ones other than the stem and the classifier, with the
        batch norm that follows each. See `harness.where` for presets and keys.
    kernel_size: resizes the layers that `where` picks (1x1 layers never change); padding keeps the map's size.
    block_options: handed to the block's constructor.
    A block whose layers share state takes all that `where` picks at once; see the module of its `shared_state`.

    A block brings its own normalisation: a batch norm that takes the convolution's output and nothing else goes,
    its activation (timm's BatchNormAct2d) stays. The blocks have fresh weights on the device and in the dtype of
    what they replace, drawn from torch's global generator in the order in which the layers run.
    The new model's `swap_report` is a tuple of `LayerChange`, one per convolution.

    Raises UnknownName for a block, preset or key that does not exist, HarnessError when nothing matches,
    Unsupported when the block refuses a layer that was picked.
    """
    rule = rules.parse(where)
    if block == native.NAME:
        return native.with_own_layers(model, kernel_size, block_options)
    declared = blocks.BLOCKS[block]
    if declared.keeps_kernel_sizes and kernel_size is not None:
        raise Unsupported(f"in a network block {block} keeps the kernel sizes", remedy="leave kernel_size out")
    if declared.shared_state is not None:
        return SHARED_STATES[declared.shared_state](model, block, rule, block_options)
    return _swap_layers(model, block, rule, kernel_size, block_options)


def _swap_layers(
    model: nn.Module, block: str, rule: Where, kernel_size: int | None, block_options: dict[str, Json]
) -> nn.Module:
    """Layer by layer, each with a block of its own."""
    new = deepcopy(model)
    layers = Layers(new, trace(model, training=True))
    report = []
    for use in layers.uses:
        conv = layers.conv(use.name)
        chosen, reason = layers.choose(use, rule, block)
        before = " + ".join(label(new.get_submodule(name)) for name in (use.name, use.norm) if name is not None)
        if chosen is None:
            report.append(LayerChange(use.name, before, before, reason))
            continue
        size = conv.kernel_size[0]
        if kernel_size is not None and size != 1 and chosen == block:  # a companion keeps the layer's size
            size = kernel_size
        options = {**layers.own_options(use.name), **block_options}
        made = _block_for(use.name, conv, chosen, size, _known_options(block, chosen, options, block_options))
        _refuse_unmet_need(use, chosen, made)
        new = replace_module(new, use.name, made)
        if use.norm is not None:
            new = replace_module(new, use.norm, without_norm(new.get_submodule(use.norm)))
        after = f"{chosen}({conv.in_channels}, {conv.out_channels}, {size}x{size})"
        report.append(LayerChange(use.name, before, after, reason))
    linear_form = blocks.BLOCKS[block].linear_form
    if rule.classifier and linear_form is not None:
        report += _swap_classifiers(new, layers, linear_form)
    if not any(change.changed for change in report):
        raise nothing_matched(layers, rule, report)
    new.swap_report = tuple(report)  # type: ignore[assignment]
    return new


def _refuse_unmet_need(use: ConvUse, name: str, block: blocks.Block) -> None:
    """A block that is exact for non-negative inputs alone, in a layer that may read others."""
    if block.needs != blocks.NON_NEGATIVE or use.non_negative:
        return
    instead = f"use {': '.join(map(str, block.without_needs))}, or " if block.without_needs else ""
    raise Unsupported(
        f"layer {use.name}: block {name} fuses exactly for {block.needs} only, which this layer may not have",
        remedy=f"{instead}name layers that follow a ReLU with where: {{name: [...]}}",
    )


def _swap_classifiers(new: nn.Module, layers: Layers, make: Callable[[int, int], nn.Module]) -> Iterator[LayerChange]:
    for name in sorted(layers.classifier):
        linear = new.get_submodule(name)
        if type(linear) is not nn.Linear:
            continue
        with torch.device("meta" if linear.weight.is_meta else "cpu"):
            made = make(linear.in_features, linear.out_features)
        replace_module(new, name, made.to(linear.weight.device, linear.weight.dtype).train(linear.training))
        yield LayerChange(name, label(linear), label(made), "the classifier, picked by where")


def _block_for(name: str, conv: nn.Conv2d, block: str, kernel_size: int, options: dict[str, Json]) -> blocks.Block:
    weight, dilation = conv.weight, conv.dilation[0]
    # A resized kernel takes as many zeros more as its reach is longer: the map keeps the size that it had.
    padding = (padding_of(conv) or 0) + dilation * (kernel_size // 2 - conv.kernel_size[0] // 2)
    # Made on the CPU whatever the device, so that a seed gives the same weights everywhere.
    place = "meta" if weight.is_meta else "cpu"
    try:
        with torch.device(place):
            made = blocks.create(
                block,
                conv.in_channels,
                conv.out_channels,
                kernel_size=kernel_size,
                stride=conv.stride[0],
                groups=conv.groups,
                dilation=dilation,
                padding=padding,
                **options,
            )
    except Unsupported as refusal:
        raise Unsupported(f"layer {name}, {label(conv)}: {refusal.problem}", remedy=refusal.remedy) from refusal
    made = made.to(device=weight.device, dtype=weight.dtype)
    return made.train(conv.training)


def _known_options(block: str, chosen: str, options: dict[str, Json], asked: dict[str, Json]) -> dict[str, Json]:
    """Of a layer's options those that its block has; what was asked of the block itself stays, to be refused."""
    return {
        name: value
        for name, value in options.items()
        if name in blocks.BLOCKS[chosen].options() or (chosen == block and name in asked)
    }
