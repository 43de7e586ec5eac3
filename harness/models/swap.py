"""Put a block in the place of a model's convolutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy

import torch
from torch import nn

from harness import blocks
from harness import where as rules
from harness.blocks.dynamic.dcd import DCDLinear
from harness.errors import HarnessError, Unsupported
from harness.models.candidates import Layers
from harness.models.layers import (
    LayerChange,
    has_own_reparameterization,
    label,
    padding_of,
    replace_module,
    without_norm,
)
from harness.models.tracing import trace
from harness.models.warehouse_plans import PAPER, plan
from harness.models.warehouses import swap_in_warehouses
from harness.records import Json
from harness.where import Where

LINEAR: Mapping[str, Callable[[int, int], nn.Module]] = {"dcd": DCDLinear}
"""What a block's paper puts in the place of the linear classifier, for a rule that picks that."""

SHARING = "kw"
"""The block whose layers take their kernels from warehouses that they share: a network is swapped as a whole."""

NATIVE = "native"
"""The block that means: timm's own re-parameterizable modules, as they are."""


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
    Block `kw` shares warehouses: the layers that `where` picks one for each stage, with `kw-paper` as its paper does.

    A block brings its own normalisation: a batch norm that takes the convolution's output and nothing else goes,
    its activation (timm's BatchNormAct2d) stays. The blocks have fresh weights on the device and in the dtype of
    what they replace, drawn from torch's global generator in the order in which the layers run.
    The new model's `swap_report` is a tuple of `LayerChange`, one per convolution.

    Raises UnknownName for a block, preset or key that does not exist, HarnessError when nothing matches,
    Unsupported when the block refuses a layer that was picked.
    """
    rule = rules.parse(where)
    new = deepcopy(model)
    if block == NATIVE:
        return _native(new, kernel_size, block_options)
    if block == SHARING:
        return _in_warehouses(model, rule, kernel_size, block_options)
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
        if made.needs == blocks.NON_NEGATIVE and not use.non_negative:
            raise Unsupported(
                f"layer {use.name}: block {chosen} fuses exactly for {made.needs} only, which this layer may not have",
                remedy="use carry: prelu, or name layers that follow a ReLU with where: {name: [...]}",
            )
        new = replace_module(new, use.name, made)
        if use.norm is not None:
            new = replace_module(new, use.norm, without_norm(new.get_submodule(use.norm)))
        after = f"{chosen}({conv.in_channels}, {conv.out_channels}, {size}x{size})"
        report.append(LayerChange(use.name, before, after, reason))
    if rule.classifier and block in LINEAR:
        report += _swap_classifiers(new, layers, LINEAR[block])
    if not any(change.changed for change in report):
        raise _nothing_matched(layers, rule, report)
    new.swap_report = tuple(report)  # type: ignore[assignment]
    return new


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


def _in_warehouses(model: nn.Module, rule: Where, kernel_size: int | None, options: dict[str, Json]) -> nn.Module:
    """The paper's plan of warehouses, or one for each stage of the layers that `rule` picks; norms stay."""
    if kernel_size is not None:
        raise Unsupported(f"in a network block {SHARING} keeps the kernel sizes", remedy="leave kernel_size out")
    with torch.device("meta"):
        blocks.create(SHARING, 16, 16, **options)  # refuses options that it does not have
    named: frozenset[str] | None = None
    if rule != rules.PRESETS[PAPER]:
        layers = Layers(model, trace(model, training=True))
        chosen = [(use, *layers.choose(use, rule, SHARING)) for use in layers.uses]
        named = frozenset(use.name for use, block, _ in chosen if block is not None)
        if not named:
            report = [LayerChange(use.name, "", "", reason) for use, _, reason in chosen]
            raise _nothing_matched(layers, rule, report)
    ratio, norm = options.get("ratio", 1), options.get("attention_norm")
    return swap_in_warehouses(model, plan(model, ratio, PAPER if named is None else named, norm))


def _native(new: nn.Module, kernel_size: int | None, options: dict[str, Json]) -> nn.Module:
    if kernel_size is not None or options:
        raise Unsupported("block native has neither kernel sizes nor options", remedy="leave them out")
    own = [(name, module) for name, module in new.named_modules() if name and has_own_reparameterization(module)]
    if not own:
        raise Unsupported(
            f"{type(new).__name__} has no modules that re-parameterize themselves",
            remedy="use block native with repvgg_a0, mobileone_s0, fastvit_t8, ..., or another block here",
        )
    new.swap_report = tuple(  # type: ignore[assignment]
        LayerChange(name, label(module), label(module), "re-parameterizes itself") for name, module in own
    )
    return new


def _nothing_matched(layers: Layers, rule: Where, report: list[LayerChange]) -> HarnessError:
    sizes = Counter(conv.kernel_size[0] for conv in layers.free().values())
    found = ", ".join(f"{size}x{size} ({count} layers)" for size, count in sorted(sizes.items()))
    other = [size for size in sorted(sizes) if size > 1 and size not in rule.kernel_sizes]
    if found:
        why = f"beside the stem it could be {found}"
    else:
        why = Counter(change.reason for change in report).most_common(1)[0][0] if report else "it has none"
    remedy = (
        f"where={{'kernel_size': {other[0]}}}" if other else "name layers with where={'name': [...]}, or another model"
    )
    return HarnessError(f"where picks no convolution of this model: {why}", remedy=remedy)
