"""Which convolutions of a model a block takes the place of: `where`, without torch.

Written as nothing (the default), a preset's name, a kernel size, a mapping of keys, or a preset with some of
its keys changed::

    where: orepa-paper
    where: 7
    where: {kernel_size: [3, 5], depthwise: false, name: "layer1.*"}
    where: {repvgg-paper: {stem: false}}

A key left out keeps its default. A layer's exact name (no ``*?[``) picks that layer whatever the other keys say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from harness.errors import HarnessError
from harness.records import Json
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
    companions: tuple[Companion, ...] = ()

    @property
    def exact_names(self) -> frozenset[str]:
        """The layers called by their full name."""
        return frozenset(name for name in self.names if not set(name) & set("*?["))

    def refuses(self, name: str, *, kernel_size: int, stride: int, depthwise: bool, stem: bool) -> str:
        """Why the layer is not picked; empty when it is."""
        if name in self.exact_names:
            return ""
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
}

KEYS = ("kernel_size", "stem", "depthwise", "stride", "name")


def parse(value: Where | Json) -> Where:
    """The choice that `value` stands for.

    Raises UnknownName for a preset or key that does not exist, HarnessError for a value of the wrong kind.
    """
    if value is None:
        return PRESETS["default"]
    if isinstance(value, Where):
        return value
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
        chosen["names"] = _names(value["name"])
    for key in ("stem", "depthwise"):
        if key in value:
            chosen[key] = _truth(key, value[key])
    return replace(base, **chosen)


def _sizes(key: str, value: Json) -> tuple[int, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if not items or any(isinstance(item, bool) or not isinstance(item, int) or item < 1 for item in items):
        raise HarnessError(f"{key} cannot be {value!r}", remedy="use a positive integer or a list of them")
    return tuple(items)


def _names(value: Json) -> tuple[str, ...]:
    items: Collection[Json] = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not items or any(not isinstance(item, str) for item in items):
        raise HarnessError(f"name cannot be {value!r}", remedy='use a layer name or a pattern such as "layer1.*"')
    return tuple(items)


def _truth(key: str, value: Json) -> bool:
    if not isinstance(value, bool):
        raise HarnessError(f"{key} cannot be {value!r}", remedy=f"use {key}: true or {key}: false")
    return value
