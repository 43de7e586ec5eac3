"""Put a block in the place of a model's convolutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from copy import deepcopy
from fnmatch import fnmatchcase

import torch
from torch import nn

from harness import blocks
from harness.catalog import where as rules
from harness.catalog.where import Where
from harness.errors import HarnessError, Unsupported
from harness.models.layers import (
    LayerChange,
    has_own_reparameterization,
    is_depthwise,
    label,
    replace_module,
    without_norm,
)
from harness.models.tracing import ConvUse, Trace, trace
from harness.records import Json

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
        batch norm that follows each. See `harness.catalog.where` for presets and keys.
    kernel_size: resizes the layers that `where` picks (1x1 layers never change); padding keeps the map's size.
    block_options: handed to the block's constructor.

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
    layers = _Layers(new, trace(model, training=True))
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
    if not any(change.changed for change in report):
        raise _nothing_matched(layers, rule, report)
    new.swap_report = tuple(report)  # type: ignore[assignment]
    return new


def candidates(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions that some `where` could pick, by name, in the order in which they run; not the stem."""
    return _Layers(model, trace(model, training=True)).free()


class _Layers:
    """The convolutions of a model as `where` sees them."""

    def __init__(self, model: nn.Module, seen: Trace) -> None:
        self.modules = dict(model.named_modules())
        self.uses = tuple(seen.convs.values())
        own_stem = getattr(model, "stem_names", None)  # the harness's backbones say it themselves
        self.stem = seen.stem | _configured(model, "first_conv") if own_stem is None else frozenset(own_stem)
        self.classifier = _configured(model, "classifier")
        self._own_options = getattr(model, "slot_options", {})
        self.shared = _shared(model)
        self.unit_ends = _unit_ends(self.modules, self.uses)
        self.closed = {
            name: "is a block already" if isinstance(module, blocks.Block) else "re-parameterizes itself (block native)"
            for name, module in self.modules.items()
            if isinstance(module, blocks.Block) or (name and has_own_reparameterization(module))
        }

    def conv(self, name: str) -> nn.Conv2d:
        module = self.modules[name]
        assert isinstance(module, nn.Conv2d)
        return module

    def own_options(self, name: str) -> dict[str, Json]:
        """What the network's paper sets for a block in this layer; only the harness's networks say so."""
        return dict(self._own_options.get(name, {}))

    def free(self) -> dict[str, nn.Conv2d]:
        """Those that a block could take the place of, the stem aside."""
        uses = [use for use in self.uses if use.name not in self.stem and not self.cannot(use)]
        return {use.name: self.conv(use.name) for use in uses}

    def cannot(self, use: ConvUse) -> str:
        """Why no block could take the layer's place, whatever is asked; empty when one could."""
        conv = self.conv(use.name)
        height, width = conv.kernel_size
        if type(conv) is not nn.Conv2d:
            return f"{type(conv).__name__} is not a plain Conv2d"
        if height != width:
            return f"its kernel is {height}x{width}, not square"
        if use.runs != 1:
            return f"runs {use.runs} times in one forward pass" if use.runs else "does not run as a module"
        if use.name in self.shared:
            return "its weights are shared with another layer"
        if conv._forward_hooks or conv._forward_pre_hooks:
            return "it has hooks of its own"
        if use.whole_map:
            return "it sees the whole map at once: a linear layer"
        if conv.padding_mode != "zeros":
            return f"its padding is {conv.padding_mode}"
        if len(set(conv.stride)) > 1 or len(set(conv.dilation)) > 1:
            return "its stride or dilation differs between rows and columns"
        if height % 2 == 0:
            return f"its kernel is {height}x{width}, and even kernels have no centre"
        if _padding(conv) is None:
            return f"its padding is {conv.padding}, which differs between rows and columns"
        return next((f"{name} {why}" for name, why in self.closed.items() if _within(use.name, name)), "")

    def choose(self, use: ConvUse, rule: Where, block: str) -> tuple[str | None, str]:
        """The block that takes the layer's place when `block` is put in, or None; and why."""
        if reason := self.cannot(use):
            return None, reason
        reason = self.unpicked(use, rule)
        if not reason:
            return block, "picked by where"
        parents = use.name.split(".")[:-1]
        inside = [type(self.modules[".".join(parents[: i + 1])]).__name__ for i in range(len(parents))]
        size, stem = self.conv(use.name).kernel_size[0], use.name in self.stem
        companion = rule.companion(block, kernel_size=size, stem=stem, inside=inside)
        if companion is None or any(_within(use.name, name) for name in self.classifier):
            return None, reason
        return companion, f"picked by where for {block}'s companion"

    def unpicked(self, use: ConvUse, rule: Where) -> str:
        """Why `rule` does not pick the layer; empty when it does."""
        conv = self.conv(use.name)
        if use.name not in rule.exact_names and any(_within(use.name, name) for name in self.classifier):
            return "the classifier stays unless named"
        return rule.refuses(
            use.name,
            kernel_size=conv.kernel_size[0],
            stride=conv.stride[0],
            depthwise=is_depthwise(conv),
            stem=use.name in self.stem,
            ends_unit=use.name in self.unit_ends,
        )


def _padding(conv: nn.Conv2d) -> int | None:
    """Zeros on each side of an odd square kernel's map; None where rows and columns differ."""
    if isinstance(conv.padding, str):
        return 0 if conv.padding == "valid" else conv.dilation[0] * (conv.kernel_size[0] // 2)
    rows, columns = conv.padding
    return rows if rows == columns else None


def _within(name: str, ancestor: str) -> bool:
    return name == ancestor or not ancestor or name.startswith(f"{ancestor}.")


def _configured(model: nn.Module, key: str) -> frozenset[str]:
    """Layer names in timm's configuration of the model."""
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get(key) or ()
    return frozenset([names] if isinstance(names, str) else names)


def _unit_ends(modules: Mapping[str, nn.Module], uses: Iterable[ConvUse]) -> frozenset[str]:
    """The convolution that runs last in each residual unit, shortcuts aside."""
    last = {}
    for use in uses:
        if any(fnmatchcase(use.name, pattern) for pattern in rules.SHORTCUTS):
            continue
        parents = use.name.split(".")[:-1]
        for length in range(len(parents), 0, -1):
            unit = ".".join(parents[:length])
            if type(modules[unit]).__name__ in rules.UNITS:
                last[unit] = use.name
                break
    return frozenset(last.values())


def _shared(model: nn.Module) -> frozenset[str]:
    """Modules registered under several names, and modules one of whose parameters another module has too."""
    by_module: dict[int, set[str]] = {}
    by_parameter: dict[int, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        by_module.setdefault(id(module), set()).add(name)
        for parameter in module.parameters(recurse=False):
            by_parameter.setdefault(id(parameter), set()).add(name)
    together = [names for names in (*by_module.values(), *by_parameter.values()) if len(names) > 1]
    return frozenset().union(*together)


def _block_for(name: str, conv: nn.Conv2d, block: str, kernel_size: int, options: dict[str, Json]) -> blocks.Block:
    weight, dilation = conv.weight, conv.dilation[0]
    # A resized kernel takes as many zeros more as its reach is longer: the map keeps the size that it had.
    padding = (_padding(conv) or 0) + dilation * (kernel_size // 2 - conv.kernel_size[0] // 2)
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


def _nothing_matched(layers: _Layers, rule: Where, report: list[LayerChange]) -> HarnessError:
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
