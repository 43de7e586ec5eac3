"""Which convolutions of a model a block takes the place of: `where`, without torch.

Written as nothing (the default), a preset's name, a kernel size, a mapping of keys, or a preset with some of
its keys changed::

    where: orepa-paper
    where: 7
    where: {kernel_size: [3, 5], depthwise: false, name: "layer1.*"}
    where: {repvgg-paper: {stem: false}}
    where: {kernel_size: [1, 3], unit_end: true, except: "layer1.*"}

`unit_end` picks the last convolution of each residual unit (`UNITS`), shortcuts aside: where attentions stand in their
papers. A key left out keeps its default. A layer's exact name (no ``*?[``) picks that layer whatever the other keys
say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from harness.errors import HarnessError
from harness.records import Json, Variant
from harness.registry import unknown


@dataclass(frozen=True)
class Companion:
    """Another block of the same paper, for layers that the block `of` itself does not take the place of.

    It keeps their kernel sizes. `spared` are classes of modules whose own layers stay as they are.
    """

    of: str
    block: str
    kernel_sizes: tuple[int, ...]
    stem: bool = False
    spared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Where:
    """A frozen choice of layers. `kernel_sizes` are sides of square kernels; None elsewhere means any."""

    kernel_sizes: tuple[int, ...] = (3,)
    stem: bool = False
    depthwise: bool | None = None
    strides: tuple[int, ...] | None = None
    names: tuple[str, ...] = ()
    excepted: tuple[str, ...] = ()
    unit_end: bool = False
    classifier: bool = False
    """Whether the linear classifier is replaced too, by blocks that have a linear form."""
    companions: tuple[Companion, ...] = ()

    @property
    def exact_names(self) -> frozenset[str]:
        """The layers called by their full name."""
        return frozenset(name for name in self.names if not set(name) & set("*?["))

    def refuses(
        self, name: str, *, kernel_size: int, stride: int, depthwise: bool, stem: bool, ends_unit: bool = False
    ) -> str:
        """Why the layer is not picked; empty when it is."""
        if name in self.exact_names:
            return ""
        if any(fnmatchcase(name, pattern) for pattern in self.excepted):
            return "excepted"
        if self.unit_end and not ends_unit:
            return "it does not end a residual unit"
        if stem and not self.stem:
            return "the stem stays unless named"
        if self.names and not any(fnmatchcase(name, pattern) for pattern in self.names):
            return f"no name in {', '.join(self.names)} fits"
        if kernel_size not in self.kernel_sizes:
            return f"kernel size {kernel_size} is not among {', '.join(map(str, self.kernel_sizes))}"
        if self.strides is not None and stride not in self.strides:
            return f"stride {stride} is not among {', '.join(map(str, self.strides))}"
        if self.depthwise is not None and depthwise is not self.depthwise:
            return "depthwise" if depthwise else "not depthwise"
        return ""

    def companion(self, block: str, *, kernel_size: int, stem: bool, inside: Collection[str]) -> str | None:
        """The block that takes the place of a layer that `refuses` turned down when `block` is put in; None: it stays.

        inside: class names of the modules around the layer.
        """
        for other in self.companions:
            if other.of == block and kernel_size in other.kernel_sizes and (other.stem or not stem):
                return None if set(other.spared) & set(inside) else other.block
        return None


UNITS = ("BasicBlock", "Bottleneck", "InvertedResidual", "DepthwiseSeparableConv", "EdgeResidual", "MBConv")
"""Classes of modules of timm and torchvision that add their input, or could, behind their last convolution."""

SHORTCUTS = ("*downsample*", "*shortcut*")
"""Names of convolutions beside the residual branch."""
GATES = ("*.se.*", "*.attn.*", "*.fc1", "*.fc2")
"""Names of convolutions inside a backbone's own attentions."""

PRESETS: Mapping[str, Where] = {
    "default": Where(),
    # The authors' networks: k 3 and 5 become OREPA (or DBB); with OREPA 1x1 layers and large stems have blocks of their
    # own, except the 1x1 shortcuts of basic blocks: arXiv:2204.00826 and its repository.
    "orepa-paper": Where(
        kernel_sizes=(3, 5),
        companions=(
            Companion("orepa", "orepa_1x1", (1,), spared=("BasicBlock",)),
            Companion("orepa", "orepa_stem", (7, 9, 11, 13), stem=True),
        ),
    ),
    # Every 3x3 of the plain topology, the stem (stage 0) included: arXiv:2101.03697, section 3.
    "repvgg-paper": Where(stem=True),
    # "Every conv with 1 < k < 7", larger stems untouched: arXiv:2103.13425 and its repository.
    "dbb-paper": Where(kernel_sizes=(2, 3, 4, 5, 6), stem=True),
    # Head, body and tail, all that SESR has: arXiv:2103.09404.
    "sesr-paper": Where(kernel_sizes=(3, 5), stem=True),
    # Stem, shortcuts and classifier static, the last 1x1 of a MobileNetV2 dynamic: the repository of ODConv.
    "odconv-paper": Where(kernel_sizes=(1, 3, 5, 7), excepted=(*SHORTCUTS, *GATES)),
    # Shortcuts too: the re-implementation of arXiv:1912.03458 that the published counts are of.
    "dyconv-paper": Where(kernel_sizes=(1, 3, 5, 7), excepted=GATES),
    # ResNets: stem and shortcuts static, the classifier dynamic. MobileNetV2: expansions and projections alone.
    "dcd-paper": Where(
        kernel_sizes=(1, 3, 5, 7),
        depthwise=False,
        excepted=(*SHORTCUTS, *GATES, "conv_head", "blocks.0.*"),
        classifier=True,
    ),
    # The 7x7 stem is gated too; a 1x1 has nothing to gate: arXiv:1910.05577 and its repository.
    "cgc-paper": Where(kernel_sizes=(3, 5, 7), stem=True),
    # Every convolution of ShuffleNetV2's units: arXiv:2007.11823.
    "weightnet-paper": Where(kernel_sizes=(1, 3), excepted=("conv1.*", "conv5.*")),
    # The last three stages of an EfficientNet-B0: arXiv:1904.04971. Here each layer routes for itself; the shared
    # routing of a unit is timm's, backbones tf_efficientnet_cc_b0_4e, ...
    "condconv-paper": Where(kernel_sizes=(1, 3, 5), names=("blocks.[456].*",), excepted=GATES),
    # Behind the last batch norm of each residual branch, before the addition: SE, CBAM and those after them.
    "attention-paper": Where(kernel_sizes=(1, 3), unit_end=True),
    # A plan of warehouses instead of a choice of layers: arXiv:2406.07879, harness.models.warehouse_plans.
    "kw-paper": Where(kernel_sizes=(1, 3, 5, 7), stem=True),
}

KEYS = ("kernel_size", "stem", "depthwise", "stride", "name", "except", "unit_end")


def parse(value: Where | Variant | Json) -> Where:
    """The choice that `value` stands for; a cell's axis `where` holds it as a variant.

    Raises UnknownName for a preset or key that does not exist, HarnessError for a value of the wrong kind.
    """
    if value is None:
        return PRESETS["default"]
    if isinstance(value, Where):
        return value
    if isinstance(value, Variant):
        value = dict(value.options) if value.name == "where" and value.options else value.name
    if isinstance(value, str):
        return _preset(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return replace(PRESETS["default"], kernel_sizes=_sizes("where", value))
    if isinstance(value, Mapping):
        return _mapping(value)
    raise HarnessError(f"where cannot be {value!r}", remedy=f"use a kernel size, {_either()}")


def _either() -> str:
    return f"one of {', '.join(PRESETS)}, or a mapping of {', '.join(KEYS)}"


def _preset(name: str) -> Where:
    if name not in PRESETS:
        raise unknown("where preset", name, PRESETS)
    return PRESETS[name]


def _mapping(value: Mapping[str, Json]) -> Where:
    base = PRESETS["default"]
    if len(value) == 1:
        ((name, changes),) = value.items()
        if name in PRESETS and (changes is None or isinstance(changes, Mapping)):
            base, value = PRESETS[name], changes or {}
    for key in value:
        if key not in KEYS:
            raise unknown("where key", key, (*KEYS, *PRESETS))
    chosen: dict[str, Json] = {}
    if "kernel_size" in value:
        chosen["kernel_sizes"] = _sizes("kernel_size", value["kernel_size"])
    if "stride" in value:
        chosen["strides"] = _sizes("stride", value["stride"])
    if "name" in value:
        chosen["names"] = _names("name", value["name"])
    if "except" in value:
        chosen["excepted"] = _names("except", value["except"])
    for key in ("stem", "depthwise", "unit_end"):
        if key in value:
            chosen[key] = _truth(key, value[key])
    return replace(base, **chosen)


def _sizes(key: str, value: Json) -> tuple[int, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if not items or any(isinstance(item, bool) or not isinstance(item, int) or item < 1 for item in items):
        raise HarnessError(f"{key} cannot be {value!r}", remedy="use a positive integer or a list of them")
    return tuple(items)


def _names(key: str, value: Json) -> tuple[str, ...]:
    items: Collection[Json] = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not items or any(not isinstance(item, str) for item in items):
        raise HarnessError(f"{key} cannot be {value!r}", remedy='use a layer name or a pattern such as "layer1.*"')
    return tuple(items)


def _truth(key: str, value: Json) -> bool:
    if not isinstance(value, bool):
        raise HarnessError(f"{key} cannot be {value!r}", remedy=f"use {key}: true or {key}: false")
    return value
