"""The convolutions of a model as `where` sees them: which there are, which could be replaced, which a rule picks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from harness import blocks
from harness import where as rules
from harness.errors import HarnessError
from harness.models.layers import LayerChange, configured, has_own_reparameterization, is_depthwise, padding_of, within
from harness.models.tracing import ConvUse, Trace, trace
from harness.records import Json
from harness.where import Where


def candidates(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions that some `where` could pick, by name, in the order in which they run; not the stem."""
    return Layers(model, trace(model, training=True)).free()


class Layers:
    """The convolutions of a model as `where` sees them."""

    def __init__(self, model: nn.Module, seen: Trace) -> None:
        self.modules = dict(model.named_modules())
        self.uses = tuple(seen.convs.values())
        own_stem = getattr(model, "stem_names", None)  # the harness's backbones say it themselves
        self.stem = seen.stem | configured(model, "first_conv") if own_stem is None else frozenset(own_stem)
        self.classifier = configured(model, "classifier")
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
        if padding_of(conv) is None:
            return f"its padding is {conv.padding}, which differs between rows and columns"
        return next((f"{name} {why}" for name, why in self.closed.items() if within(use.name, name)), "")

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
        if companion is None or any(within(use.name, name) for name in self.classifier):
            return None, reason
        return companion, f"picked by where for {block}'s companion"

    def unpicked(self, use: ConvUse, rule: Where) -> str:
        """Why `rule` does not pick the layer; empty when it does."""
        conv = self.conv(use.name)
        if use.name not in rule.exact_names and any(within(use.name, name) for name in self.classifier):
            return "the classifier stays unless named"
        return rule.refuses(
            use.name,
            kernel_size=conv.kernel_size[0],
            stride=conv.stride[0],
            depthwise=is_depthwise(conv),
            stem=use.name in self.stem,
            ends_unit=use.name in self.unit_ends,
        )


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


def nothing_matched(layers: Layers, rule: Where, report: Sequence[LayerChange]) -> HarnessError:
    """The error for a rule that picks none of the layers; `report` says why each stays."""
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
