"""A suite: what a user asks for. `load_suite` reads and checks a file before anything is measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.errors import SuiteError
from harness.registry import unknown
from harness.suite.expressions import Expression
from harness.suite.model import Axes, Budget, Gate, Suite
from harness.suite.names import check_names, where_value
from harness.suite.source import Source

__all__ = ["Axes", "Budget", "Expression", "Gate", "Suite", "load_suite", "parse_suite", "where_value"]


def load_suite(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Suite:
    """The suite in the YAML file `path`.

    `overrides` are ``AXIS=VALUE[,VALUE...]`` and take the place of whole axes. SuiteError (file, line, nearest
    valid name, remedy) for anything that cannot be meant.
    """
    return parse_suite(Source.read(Path(path)), Path(path).stem, overrides)


def parse_suite(source: Source, name: str, overrides: Sequence[str] = ()) -> Suite:
    """As `load_suite`, for a text already read; `name` is used when the text gives none."""
    values = {"name": name, **source.values}
    changed = source
    if overrides and isinstance(values.get("axes"), dict):
        changed = Source(_override(overrides), "--set")
        values["axes"] = {**values["axes"], **changed.values}
    try:
        suite = Suite.model_validate(values)
    except ValidationError as problem:
        raise _translated(problem, source, changed) from None
    check_names(suite, source)
    return suite


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
    first = problem.errors()[0]
    location = tuple(step for step in first["loc"] if not _is_tag(step))
    if len(location) > 1 and location[0] == "axes" and str(location[1]) in overrides.values:
        source, location = overrides, location[1:]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).lstrip(".")
    if first["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        error = unknown("key" + (f" of {path.rpartition('.')[0]}" if len(location) > 1 else ""), location[-1], known)
        return source.fail(error.problem, error.remedy, location, key=True)
    if first["type"] == "missing":
        return source.fail(f"{path} is missing", f"add {location[-1]}: ...", location)
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    shown = f"{given!r}: " if isinstance(given, str | int | float) and repr(given) not in message else ""
    return source.fail(f"{path}: {shown}{message}", _wanted(location, first), location)


def _is_tag(step: str | int) -> bool:
    return isinstance(step, str) and (step.startswith(("function-", "list[", "is-instance")) or step in ("int", "str"))


def _model_at(location: Sequence[str | int]) -> Any:
    """The model that describes the keys at `location`."""
    models = {"axes": Axes, "budget": Suite.model_fields["budget"].annotation, "compare": None, "gates": Gate}
    if not location:
        return Suite
    model = models.get(str(location[0]))
    if model is None:
        return Suite.model_fields[str(location[0])].annotation if str(location[0]) == "compare" else None
    return model


def _keys_at(location: Sequence[str | int]) -> list[str]:
    model = _model_at(location)
    return list(model.model_fields) if model is not None else ["when", "because"]


def _wanted(location: Sequence[str | int], error: Any) -> str:
    """What to write instead: the field's own description when it has one."""
    model, names = _model_at(location[:-1] or location), [str(step) for step in location]
    for name in reversed(names):
        field = getattr(model, "model_fields", {}).get(name)
        if field is not None and field.description:
            return str(field.description)
    for name in names:
        field = Suite.model_fields.get(name)
        if field is not None and field.description:
            return str(field.description)
    return "see 'harness schema'" if error["type"] != "too_short" else "give at least one value"
