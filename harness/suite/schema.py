"""The suite's JSON Schema, for editors: the model's own, with the catalog's names as choices."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from harness import catalog
from harness.catalog import vocabulary
from harness.suite.model import PUBLISHED_UNITS, Axes, Suite
from harness.where import PRESETS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a suite as it is written in YAML."""
    text = Suite.model_json_schema(mode="validation")
    part = text["$defs"]["Part"]
    # one matrix may stand at the top without parts, and the file's name serves for a name
    text["properties"] = {**text["properties"], **part["properties"]}
    text["required"] = []
    text["anyOf"] = [{"required": ["parts"]}, {"required": part["required"]}]
    axes = text["$defs"]["Axes"]["properties"]
    named = {
        "block": catalog.blocks(),
        "device": catalog.devices(),
        "optimizer": catalog.optimizers(),
        "dataset": catalog.datasets(),
    }
    for axis, names in named.items():
        axes[axis] = {**_described(axes[axis]), **_one_or_list(_variant(names))}
    axes["backbone"] = {**_described(axes["backbone"]), **_one_or_list({"type": ["string", "object"]})}
    axes["where"] = {
        **_described(axes["where"]),
        **_one_or_list({"anyOf": [{"enum": list(PRESETS)}, {"type": ["integer", "object"]}]}),
    }
    for axis, words in (("dtype", vocabulary.DTYPES), ("memory_format", vocabulary.MEMORY_FORMATS)):
        axes[axis] = {**_described(axes[axis]), **_one_or_list({"enum": list(words)})}
    for axis in ("kernel_size", "batch_size", "image_size", "threads"):
        axes[axis] = {**_described(axes[axis]), **_one_or_list({"type": "integer", "minimum": 1})}
    part["properties"]["metrics"] = text["properties"]["metrics"] = _one_or_list(_variant(catalog.metrics()))
    text["properties"]["gates"]["propertyNames"] = {"enum": sorted(catalog.quantities())}
    published = text["$defs"]["Published"]["properties"]
    published["metric"]["enum"] = sorted(catalog.quantities())
    published["unit"] = {**_described(published["unit"]), "enum": [*PUBLISHED_UNITS, 1]}
    text["$defs"]["Compare"]["properties"]["axis"]["enum"] = list(Axes.model_fields)
    return {"$schema": DIALECT, **text}


def schema_text() -> str:
    return json.dumps(schema(), indent=1) + "\n"


def _described(field: dict[str, Any]) -> dict[str, Any]:
    return {"description": field["description"]} if "description" in field else {}


def _one_or_list(item: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]}


def _variant(names: Collection[str]) -> dict[str, Any]:
    """A name, or a mapping of one name to its options."""
    options = {"type": "object", "propertyNames": {"enum": sorted(names)}, "minProperties": 1, "maxProperties": 1}
    return {"anyOf": [{"enum": sorted(names)}, options]}
