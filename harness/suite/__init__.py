"""A suite: what a user asks for. `load_suite` reads and checks a file before anything is measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from harness.errors import SuiteError
from harness.registry import unknown
from harness.suite.expressions import Expression
from harness.suite.model import WHOLE, Axes, BudgetSpec, Compare, Gate, Part, Published, Rule, Suite, as_written
from harness.suite.names import check_names
from harness.suite.source import Source

__all__ = [
    "WHOLE",
    "Axes",
    "Expression",
    "Gate",
    "Part",
    "Published",
    "Suite",
    "load_suite",
    "parse_suite",
    "published_in",
]


def load_suite(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Suite:
    """The suite in the YAML file `path`.

    `overrides` are ``AXIS=VALUE[,VALUE...]`` and take the place of whole axes. SuiteError (file, line, nearest
    valid name, remedy) for anything that cannot be meant.
    """
    return parse_suite(Source.read(Path(path)), Path(path).stem, overrides)


def parse_suite(source: Source, name: str, overrides: Sequence[str] = ()) -> Suite:
    """As `load_suite`, for a text already read; `name` is used when the text gives none."""
    values = {"name": name, **source.values}
    changed = Source(_override(overrides), "--set") if overrides else source
    if "parts" not in values:
        # one matrix, written at the top: the same thing as one part
        matrix = {key: values.pop(key) for key in list(values) if key in Part.model_fields}
        values["parts"] = {WHOLE: matrix}
    else:
        _refuse_both(values, source)
    if overrides:
        _apply(changed.values, values["parts"])
    try:
        suite = Suite.model_validate(values)
    except ValidationError as problem:
        raise _translated(problem, source, changed) from None
    check_names(suite.read_from(source))
    return suite


def published_in(text: str) -> list[Published]:
    """The published entries of a run's suite, whatever else its text says.

    A report of an old run needs no more: axes and metrics are in its plan, and may no longer pass today's checks.
    Overrides change axes only. Empty for a text that is no suite; SuiteError for entries that cannot be read.
    """
    try:
        source = Source(text, "the run's suite")
    except SuiteError:
        return []
    try:
        return TypeAdapter(list[Published]).validate_python(source.values.get("published", []))
    except ValidationError as problem:
        first = problem.errors()[0]
        path = ".".join(str(step) for step in first["loc"] if not _is_tag(step))
        raise source.fail(
            f"published.{path}: {first['msg']}", "report with the version that measured", ("published", *first["loc"])
        ) from None


def _refuse_both(values: dict[str, Any], source: Source) -> None:
    for key in Part.model_fields:
        if key in values:
            raise source.fail(
                f"{key} stands beside parts", f"move {key} into the parts that it is meant for", (key,), key=True
            )


def _apply(axes: dict[str, Any], parts: Any) -> None:
    """Let every part have the overriding axes, where it is shaped so that it can; the model says the rest."""
    for part in parts.values() if isinstance(parts, dict) else []:
        if isinstance(part, dict) and isinstance(part.get("axes"), dict):
            part["axes"] = {**part["axes"], **axes}


def _override(overrides: Sequence[str]) -> str:
    lines = []
    for item in overrides:
        axis, equals, value = item.partition("=")
        if not equals or axis.strip() not in Axes.model_fields:
            error = unknown("axis", axis.strip(), Axes.model_fields)
            remedy = error.remedy if equals else "write AXIS=VALUE, as in --set batch_size=16"
            raise SuiteError(f"--set {item}: {error.problem if equals else 'there is no ='}", remedy=remedy)
        lines.append(f"{axis.strip()}: [{value}]")
    return "\n".join(lines)


def _translated(problem: ValidationError, source: Source, overrides: Source) -> SuiteError:
    """pydantic's first complaint as one line with a place and a remedy."""
    # a misspelt key also leaves the right one missing: tell the cause, not the consequence
    first = min(problem.errors(), key=lambda error: error["type"] != "extra_forbidden")
    location = as_written(step for step in first["loc"] if not _is_tag(step))
    model, inside = _home(location)
    if len(inside) > 1 and inside[0] == "axes" and overrides is not source and str(inside[1]) in overrides.values:
        source, location = overrides, inside[1:]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).lstrip(".")
    if first["type"] == "extra_forbidden":
        known = model.model_fields if model is not Suite else {**Suite.model_fields, **Part.model_fields}
        error = unknown("key" + (f" of {path.rpartition('.')[0]}" if len(location) > 1 else ""), location[-1], known)
        return source.fail(error.problem, error.remedy, location, key=True)
    if first["type"] == "missing":
        return source.fail(f"{path} is missing", f"add {location[-1]}: ...", location)
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = f"{given!r}: " if isinstance(given, str | int | float) and repr(given) not in message else ""
    return source.fail(f"{path}: {shown}{message}", _wanted(model, inside, first["type"]), location)


MODELS: dict[str, Any] = {
    "axes": Axes, "compare": Compare, "exclude": Rule, "include": Rule, "budget": BudgetSpec, "gates": Gate,
    "published": Published,
}  # fmt: skip
"""What a key's value is made of."""


def _is_tag(step: str | int) -> bool:
    """Steps that pydantic adds for validators and unions, which no file has."""
    return isinstance(step, str) and (step.startswith(("function-", "list[", "is-instance")) or step in ("int", "str"))


def _home(location: Sequence[str | int]) -> tuple[Any, tuple[str | int, ...]]:
    """The model in which the last step of `location` is a key, and the location within its part."""
    inside = tuple(location[2:] if location[:1] == ("parts",) else location)
    if len(inside) > 1:
        return MODELS.get(str(inside[0]), Suite), inside
    return (Part if inside is not location and len(location) > 2 else Suite), inside


def _wanted(model: Any, inside: Sequence[str | int], kind: str) -> str:
    """What to write instead: the field's own description when it has one."""
    if kind == "too_short":
        return "give at least one value"
    for name in reversed([str(step) for step in inside]):
        for owner in (model, Part, Suite):
            field = owner.model_fields.get(name)
            if field is not None and field.description:
                return str(field.description)
    return "see 'harness schema'"
