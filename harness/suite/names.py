"""Checks what axes, metrics, gates and published entries name against the catalog, with the place of each mistake."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from harness import catalog
from harness.catalog import vocabulary
from harness.errors import HarnessError, SuiteError
from harness.records import Variant
from harness.registry import unknown
from harness.suite.expressions import Expression
from harness.suite.model import PUBLISHED_UNITS, Axes, Part, Published, Suite
from harness.units import as_bytes
from harness.where import parse as parse_where

LARGEST_KERNEL = 31
TYPES: dict[str, tuple[type, ...]] = {"number": (int, float), "integer": (int,), "text": (str,), "boolean": (bool,)}

AXES = tuple(Axes.model_fields)

Location = tuple[str | int, ...]


def check_names(suite: Suite) -> None:
    """SuiteError at the first name, option or value that does not exist."""
    for name, part in suite.parts.items():
        _Names(suite, part, ("parts", name)).check()
    read = [q["name"] for part in suite.parts.values() for m in part.metrics for q in _quantities(m.name)]
    for gate in suite.gates:
        if gate not in read:
            error = unknown("quantity that this suite's metrics read", gate, read)
            raise suite.fail(error.problem, error.remedy, ("gates", gate), key=True)
    for i, entry in enumerate(suite.published):
        _check_published(suite, entry, ("published", i), read)


def _check_published(suite: Suite, entry: Published, at: Location, read: Collection[str]) -> None:
    """What can be known of published figures without the figures and without the plan."""
    if entry.metric not in read:
        error = unknown("quantity that this suite's metrics read", entry.metric, read)
        raise suite.fail(error.problem, error.remedy, (*at, "metric"))
    quantity = catalog.quantities()[entry.metric]
    if entry.form not in quantity.forms:
        remedy = f"use {' or '.join(form or repr(form) for form in quantity.forms)}"
        raise suite.fail(f"{entry.metric} has no form {entry.form!r}", remedy, (*at, "form"))
    _check_unit(suite, entry, at, quantity.unit)
    for id_, text in entry.figures.items():
        try:
            Expression(text)
        except HarnessError as problem:
            raise suite.fail(problem.problem, problem.remedy, (*at, "figures", id_)) from None


def _check_unit(suite: Suite, entry: Published, at: Location, unit: str) -> None:
    if entry.reduction:
        if entry.unit != "%" or entry.saved_from is not None:
            remedy = "use unit: '%', without saved_from"
            raise suite.fail("a reduction is a share of the reference's own quantity", remedy, (*at, "reduction"))
    elif entry.unit not in PUBLISHED_UNITS:
        error = unknown("unit", entry.unit, _units_for(unit))
        raise suite.fail(error.problem, error.remedy, (*at, "unit"))
    elif entry.unit not in _units_for(unit):
        problem = f"{entry.metric} is not measured in {entry.unit}"
        raise suite.fail(problem, f"use {', '.join(_units_for(unit))}", (*at, "unit"))


def _units_for(unit: str) -> list[str]:
    """The published units that a quantity's SI unit can be written in."""
    return [name for name, (units, _) in PUBLISHED_UNITS.items() if unit in units]


def _quantities(metric: str) -> Any:
    return catalog.metrics()[metric]["quantities"]


class _Names:
    """The checks of one part, which stands at `at` in the suite."""

    def __init__(self, suite: Suite, part: Part, at: Location) -> None:
        self.suite = suite
        self.part = part
        self.at = at

    def fail(self, problem: str, remedy: str, location: Location, key: bool = False) -> SuiteError:
        return self.suite.fail(problem, remedy, (*self.at, *location), key)

    def check(self) -> None:
        axes = self.part.axes
        zipped = {name for names in self.part.zip for name in names}
        for name, values in axes:
            if values is not None and name not in zipped:
                self._doubles(name, values)
        self._variants("block", axes.block, lambda v: catalog.lookup("block", catalog.blocks(), v.name)["options"])
        for i, block in enumerate(axes.block):
            self._components_left(block, ("axes", "block", i))
        self._variants("backbone", axes.backbone, self._backbone_options)
        self._variants("device", axes.device, self._device_options)
        self._variants("optimizer", axes.optimizer, self._optimizer_options)
        self._variants("dataset", axes.dataset, lambda v: catalog.lookup("dataset", catalog.datasets(), v.name) and {})
        self._words("dtype", axes.dtype, vocabulary.DTYPES)
        self._words("memory_format", axes.memory_format, vocabulary.MEMORY_FORMATS)
        self._kernel_sizes()
        for i, where in enumerate(axes.where):
            self._try(("axes", "where", i), lambda where=where: parse_where(where))
        self._metrics()
        self._axis_names()
        for key in ("exclude", "include"):
            for i, rule in enumerate(getattr(self.part, key)):
                self._try((key, i, "when"), lambda rule=rule: Expression(rule.when))

    def _try(self, location: Location, check: Any) -> Any:
        try:
            return check()
        except HarnessError as problem:
            raise self.fail(problem.problem, problem.remedy, location) from None

    def _doubles(self, axis: str, values: list[Any]) -> None:
        labels = [v.label if isinstance(v, Variant) else v for v in values]
        for i, label in enumerate(labels):
            if label in labels[:i]:
                raise self.fail(f"{label!r} stands twice on the axis {axis}", "keep one of them", ("axes", axis, i))

    def _variants(self, axis: str, values: list[Variant], options_of: Any) -> None:
        for i, variant in enumerate(values):
            location = ("axes", axis, i)
            declared = self._try(location, lambda variant=variant: options_of(variant))
            self._options(axis, variant, declared, location)

    def _options(self, kind: str, variant: Variant, declared: Mapping[str, Any], location: Location) -> None:
        for option, value in variant.options.items():
            place = (*location, variant.name, option)
            if option not in declared:
                error = unknown(f"option of {kind} {variant.name}", option, declared)
                remedy = error.remedy if declared else f"write {variant.name} without options"
                raise self.fail(error.problem, remedy, place, key=True)
            problem = option_problem(declared[option], value)
            if problem and kind == "block" and option == "reparam":
                problem = problem[0], _online_remedy(variant.name) or problem[1]
            if problem:
                raise self.fail(f"{option} of {variant.name}: {problem[0]}", problem[1], place)

    def _components_left(self, block: Variant, location: Location) -> None:
        """Of a block's components one must stay."""
        declared = catalog.blocks()[block.name]
        components = declared["limits"].get("at_least_one", [])
        if components and not any(block.options.get(n, declared["options"][n]["default"]) for n in components):
            problem = f"{block.name} has nothing left: {', '.join(components)} are all false"
            raise self.fail(problem, "leave at least one of them true", location)

    @staticmethod
    def _backbone_options(variant: Variant) -> Mapping[str, Any]:
        catalog.lookup("backbone", catalog.backbones(), variant.name)
        options: Mapping[str, Any] = catalog.layers().get(variant.name, {}).get("options", {})
        return options

    @staticmethod
    def _device_options(variant: Variant) -> Mapping[str, Any]:
        kind, _, index = variant.name.partition(":")
        declared = catalog.device(variant.name)
        if (":" in variant.name and not index.isdecimal()) or (index and not declared["indexed"]):
            raise SuiteError(f"{variant.name!r} is not a device", remedy=f"use {kind}, or cuda:1 for a second device")
        options: Mapping[str, Any] = declared["options"]
        return options

    @staticmethod
    def _optimizer_options(variant: Variant) -> Mapping[str, Any]:
        options: Mapping[str, Any] = catalog.lookup("optimizer", catalog.optimizers(), variant.name)["options"]
        return options

    def _words(self, axis: str, values: list[str], known: Collection[str]) -> None:
        for i, word in enumerate(values):
            if word not in known:
                raise self.fail(
                    f"{word!r} is not a {axis}", f"use {', '.join(nearest(word, known))}", ("axes", axis, i)
                )

    def _kernel_sizes(self) -> None:
        for i, k in enumerate(self.part.axes.kernel_size or []):
            if k % 2 == 0 or k > LARGEST_KERNEL:
                raise self.fail(
                    f"kernel_size {k} is not supported",
                    f"use odd sizes from 1 to {LARGEST_KERNEL}",
                    ("axes", "kernel_size", i),
                )

    def _metrics(self) -> None:
        for i, variant in enumerate(self.part.metrics):
            location = ("metrics", i)
            entry = self._try(
                location, lambda variant=variant: catalog.lookup("metric", catalog.metrics(), variant.name)
            )
            self._options("metric", variant, entry["options"], location)
        names = [variant.name for variant in self.part.metrics]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise self.fail(f"the metric {name} stands here twice", "keep one of them", ("metrics", i))

    def _axis_names(self) -> None:
        compare = self.part.compare
        if compare.axis not in AXES:
            error = unknown("axis", compare.axis, AXES)
            raise self.fail(error.problem, error.remedy, ("compare", "axis"))
        values = getattr(self.part.axes, compare.axis)
        labels = [v.label if isinstance(v, Variant) else str(v) for v in values or []]
        reference = compare.reference
        wanted = reference.label if isinstance(reference, Variant) else str(reference)
        if reference is not None and wanted not in labels:
            error = unknown(f"value of the axis {compare.axis}", wanted, labels)
            raise self.fail(error.problem, error.remedy, ("compare", "reference"))
        self._zips()

    def _zips(self) -> None:
        seen: set[str] = set()
        for i, names in enumerate(self.part.zip):
            lengths = {}
            for j, name in enumerate(names):
                if name not in AXES or name in seen:
                    error = unknown("axis that is still free", name, set(AXES) - seen)
                    raise self.fail(error.problem, error.remedy, ("zip", i, j))
                seen.add(name)
                lengths[name] = len(getattr(self.part.axes, name) or [None])
            if len(set(lengths.values())) > 1:
                counts = ", ".join(f"{name} has {n}" for name, n in lengths.items())
                raise self.fail(f"zipped axes differ in length: {counts}", "give them equally many values", ("zip", i))


def _online_remedy(block: str) -> str | None:
    """Whom to turn to when a block has no online evaluation: its linearized sister."""
    sister = catalog.blocks()[block].get("sister")
    return f"its branches have batch norms of their own; online is for its sister {sister}" if sister else None


def nearest(word: str, known: Collection[str]) -> list[str]:
    """The names a wrong word may stand for: those that share its digits first (fp16 -> float16), or all."""
    digits = "".join(c for c in word if c.isdigit())
    near = [name for name in known if digits and digits in name]
    return near or sorted(known)


def _memory_problem(value: Any) -> tuple[str, str] | None:
    """Bytes, or an amount with a unit; None for nothing said."""
    try:
        amount = as_bytes(value)
    except ValueError as problem:
        return str(problem), "write an amount as 24GiB"
    if amount is None or (isinstance(amount, int) and not isinstance(amount, bool) and amount > 0):
        return None
    return f"{value!r} is not an amount of memory", "write bytes, or an amount as 24GiB"


def option_problem(declared: Mapping[str, Any], value: Any) -> tuple[str, str] | None:
    """Why a value does not suit an option, and what would; None when it does."""
    choices = declared.get("choices")
    if choices is not None:
        # True == 1 in Python; a benchmark should not take one for the other
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return None
        shown = ", ".join("null" if c is None else str(c).lower() if isinstance(c, bool) else str(c) for c in choices)
        return f"{value!r} is not one of its values", declared.get("remedy") or f"use {shown}"
    kind = declared["type"]
    if kind == "memory":
        return _memory_problem(value)
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"{value!r} is not a {kind}", f"write a {kind}" + (
            f", as {declared['default']}" if declared.get("default") is not None else ""
        )
    if "minimum" in declared and value < declared["minimum"]:
        return f"{value!r} is too small", f"use {declared['minimum']} or more"
    return None
