"""The matrix of a part: its points, what falls out of it and why.

An axis value that no cell can use, a rule that matches nothing and an empty matrix are mistakes of the suite, not
results: each is refused with its place in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from typing import Any

from harness import catalog
from harness.catalog.vocabulary import default_batch_size, default_image_size
from harness.errors import SuiteError
from harness.records import Cell, Variant
from harness.suite import WHOLE, Axes, Expression, Suite
from harness.where import parse as parse_where

AXES = tuple(Axes.model_fields)


@dataclass(frozen=True)
class Exclusion:
    """A point of the matrix that will not be measured, and why."""

    cell: Cell
    reason: str


class Matrix:
    """One part of a suite as a list of points."""

    def __init__(self, suite: Suite, part: str) -> None:
        self.suite = suite
        self.part = suite.parts[part]
        self.at = ("parts", part)
        self.name = "" if part == WHOLE else part

    def selected(self) -> tuple[list[Cell], list[Exclusion]]:
        """The cells that stay, and the others with their reasons. SuiteError for what cannot be meant."""
        kept, out = self._select(list(self.points()))
        if not kept:
            reasons = "; ".join(sorted({e.reason for e in out}))
            raise self._fail(f"no cell is left to measure ({reasons})", "loosen a rule, or change an axis", "axes")
        self._refuse_doubles(kept)
        self._refuse_dead_values(kept, out)
        return kept, out

    def _fail(self, problem: str, remedy: str, *location: str | int) -> SuiteError:
        return self.suite.fail(problem, remedy, (*self.at, *location))

    def points(self) -> Iterator[Cell]:
        """The whole matrix, zipped axes advancing together, defaults filled in."""
        axes = {axis: getattr(self.part.axes, axis) or [None] for axis in AXES}
        bundles = [list(names) for names in self.part.zip]
        bundles += [[axis] for axis in AXES if not any(axis in names for names in bundles)]
        bundles.sort(key=lambda names: min(AXES.index(axis) for axis in names))
        choices = [list(zip(*(axes[axis] for axis in names), strict=True)) for names in bundles]
        for chosen in product(*choices):
            point: dict[str, Any] = {"part": self.name}
            for names, values in zip(bundles, chosen, strict=True):
                point.update(zip(names, values, strict=True))
            yield _cell(point)

    def _select(self, points: Sequence[Cell]) -> tuple[list[Cell], list[Exclusion]]:
        """Every rule must have done something, or it was meant differently."""
        excludes = [(Expression(rule.when), rule.because) for rule in self.part.exclude]
        includes = [Expression(rule.when) for rule in self.part.include]
        kept, out = [], []
        for cell in points:
            reason = _ruled_out(cell, excludes, includes) or impossible(cell)
            if reason:
                out.append(Exclusion(cell, reason))
            else:
                kept.append(cell)
        for key, expressions in (("exclude", [expression for expression, _ in excludes]), ("include", includes)):
            for i, expression in enumerate(expressions):
                if not any(expression.holds(cell) for cell in points):
                    raise self._fail(
                        f"the rule {expression.text!r} matches no cell", self._suggestion(expression), key, i
                    )
        return kept, out

    def _suggestion(self, expression: Expression) -> str:
        """The value of an axis that a misspelt one in the rule may stand for."""
        values = [v.name for axis in AXES for v in getattr(self.part.axes, axis) or [] if isinstance(v, Variant)]
        values += [*self.part.axes.dtype, *self.part.axes.memory_format]
        for text in expression.texts():
            if text not in values and (near := get_close_matches(text, values, n=1)):
                return f'"{near[0]}" instead of "{text}"'
        return "mend the rule or drop it; 'harness plan' without it lists the cells"

    def _refuse_doubles(self, cells: Sequence[Cell]) -> None:
        """Zipped axes can name the same point twice; it would be measured twice and reported once."""
        for id_, count in Counter(cell.id for cell in cells).items():
            if count > 1:
                twice = next(cell for cell in cells if cell.id == id_)
                label = ", ".join(f"{axis} {value}" for axis, value in twice.axes().items() if value not in (None, ""))
                raise self._fail(f"one cell stands {count} times: {label}", "keep one of its rows in zip", "zip")

    def _refuse_dead_values(self, cells: Sequence[Cell], excluded: Sequence[Exclusion]) -> None:
        """A value of an axis that no cell can use is a mistake, whatever the rest of the matrix does."""
        alive = [cell.axes() for cell in cells]
        dead = [(exclusion.cell.axes(), exclusion.reason) for exclusion in excluded]
        for axis in AXES:
            used = {axes[axis] for axes in alive}
            reasons: dict[Any, set[str]] = {}
            for axes, reason in dead:
                if axes[axis] not in used:
                    reasons.setdefault(axes[axis], set()).add(reason)
            for value, against in reasons.items():
                if all(reason.startswith(CANNOT) for reason in against):
                    raise self._fail(
                        f"no cell can use {axis} {value}: {min(against).removeprefix(CANNOT)}",
                        f"drop {value} from the axis {axis}, or pair it with something it fits",
                        "axes",
                        axis,
                    )


TF32 = "tf32"
CANNOT = "cannot: "
"""How the reason begins when no rule of the suite but the thing itself stands against a cell."""


def _cell(point: dict[str, Any]) -> Cell:
    backbone, device = point["backbone"].name, point["device"].name
    if point["batch_size"] is None:
        point["batch_size"] = default_batch_size(backbone, device)
    if point["image_size"] is None:
        point["image_size"] = default_image_size(backbone, device)
    if point["kernel_size"] is None and backbone in catalog.layers():
        point["kernel_size"] = catalog.layers()[backbone]["kernel_size"]
    return Cell(**point)


def _ruled_out(cell: Cell, excludes: Sequence[tuple[Expression, str]], includes: Sequence[Expression]) -> str | None:
    for expression, because in excludes:
        if expression.holds(cell):
            return f"excluded: {expression.text}" + (f" ({because})" if because else "")
    if includes and not any(expression.holds(cell) for expression in includes):
        return "no include holds"
    return None


def impossible(cell: Cell) -> str | None:
    """Why no process could measure this cell, as far as the catalog knows; None when it may."""
    block = catalog.blocks()[cell.block.name]
    backbone = catalog.backbones()[cell.backbone.name]
    if wrong := _wrong_products(cell):
        return wrong
    if wrong := _wrong_image(cell, backbone.get("images", {})):
        return wrong
    is_layer = cell.backbone.name in catalog.layers()
    if cell.checkpointing and is_layer:
        return f"{CANNOT}a single layer has nothing to compute again"
    network = block["network"]
    if network["own_layers"]:
        if not backbone["native"]:
            return f"{CANNOT}{cell.backbone.name} has no re-parameterizable layers of its own"
        return f"{CANNOT}{cell.block.name} blocks keep their own kernel sizes" if cell.kernel_size is not None else None
    sizes = block["limits"]["kernel_size"]
    if cell.kernel_size is not None and cell.kernel_size not in sizes:
        return f"{CANNOT}{cell.block.name} has no kernel size {cell.kernel_size} (it has {', '.join(map(str, sizes))})"
    if network["keeps_kernel_sizes"] and not is_layer and cell.kernel_size is not None:
        return f"{CANNOT}in a network block {cell.block.name} keeps the kernel sizes"
    if is_layer:
        return _indivisible(cell) or _beyond_limits(cell, block["limits"])
    return _nothing_to_replace(cell, backbone) or _wrong_size(cell, backbone, sizes)


def _wrong_products(cell: Cell) -> str | None:
    """A dtype that is a way of multiplying float32, on a device that has no such way."""
    if cell.dtype != TF32 or TF32 in catalog.device(cell.device.name)["float32_products"]:
        return None
    able = [kind.upper() for kind, declared in catalog.devices().items() if TF32 in declared["float32_products"]]
    return f"{CANNOT}{TF32} is a mode of {' and '.join(able)} devices"


def _layer_options(cell: Cell) -> dict[str, Any]:
    """Of a backbone that is a single layer, those that are left out at their defaults."""
    declared = catalog.layers()[cell.backbone.name]["options"]
    defaults = {name: option["default"] for name, option in declared.items()}
    return {**defaults, **cell.backbone.options}


def _wrong_image(cell: Cell, images: dict[str, int]) -> str | None:
    """An image that the backbone cannot take, as far as it was tried when the catalog was made."""
    name, side = cell.backbone.name, cell.image_size
    if "only" in images and side != images["only"]:
        return f"{CANNOT}{name} takes images of {images['only']} px only, not of {side}: see the axis image_size"
    if "smallest" in images and side < images["smallest"]:
        return f"{CANNOT}{name} needs images of {images['smallest']} px or more, not {side}: see the axis image_size"
    if side % images.get("step", 1):
        return f"{CANNOT}{name} needs images whose side is a multiple of {images['step']} px, not {side}"
    return None


def _indivisible(cell: Cell) -> str | None:
    options = _layer_options(cell)
    for name in ("c_in", "c_out"):
        if options[name] % options["groups"]:
            return f"{CANNOT}{name} {options[name]} is not a multiple of groups {options['groups']}"
    return None


def _beyond_limits(cell: Cell, limits: dict[str, Any]) -> str | None:
    """A single layer of a kind that the block does not do."""
    name, layer = cell.block.name, _layer_options(cell)
    for key in ("stride", "dilation"):
        if limits[key] != "any" and layer[key] not in limits[key]:
            return f"{CANNOT}{name} has no {key} {layer[key]} (it has {', '.join(map(str, limits[key]))})"
    if limits["same_channels"] and layer["c_in"] != layer["c_out"]:
        return f"{CANNOT}{name} keeps the number of channels, not {layer['c_in']} -> {layer['c_out']}"
    multiple = limits.get("channel_multiple", 1)
    if not cell.block.options and any(layer[side] % (multiple * layer["groups"]) for side in ("c_in", "c_out")):
        return f"{CANNOT}{name} needs channels in multiples of {multiple}, not {layer['c_in']} -> {layer['c_out']}"
    if limits["groups"] == "dense" and layer["groups"] != 1:
        return f"{CANNOT}{name} has no groups, {layer['groups']} were asked for"
    if limits["groups"] == "depthwise" and not layer["groups"] == layer["c_in"] == layer["c_out"]:
        return f"{CANNOT}{name} is depthwise: use {{layer: {{groups: {layer['c_in']}}}}}"
    return None


def _wrong_size(cell: Cell, backbone: dict[str, Any], sizes: Sequence[int]) -> str | None:
    """A layer that `where` picks by its size, and whose size the block does not have."""
    where = parse_where(cell.where)
    if cell.kernel_size is not None or where.names:
        return None
    for size in where.kernel_sizes:
        if str(size) in backbone["kernels"] and size not in sizes:
            has = ", ".join(map(str, sizes))
            return f"{CANNOT}{cell.block.name} has no kernel size {size} (it has {has}); see the axis where"
    return None


def _nothing_to_replace(cell: Cell, backbone: dict[str, Any]) -> str | None:
    where = parse_where(cell.where)
    there = {int(size): count for size, count in backbone["kernels"].items()}
    if where.names or where.stem or any(size in there for size in where.kernel_sizes):
        return None  # names and stems are known once the model is built
    sizes = ", ".join(f"{size}x{size} ({count})" for size, count in sorted(there.items())) or "none"
    picked = " or ".join(f"{size}x{size}" for size in where.kernel_sizes)
    return (
        f"{CANNOT}{cell.backbone.name} has no {picked} convolution to replace beside its stem (it has {sizes}); "
        "see the axis where"
    )
