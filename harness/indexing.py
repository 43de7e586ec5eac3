"""What writes the catalog: ``python -m harness.indexing`` after a block, metric, dataset, device, optimizer or timm has
changed.

`index.json` takes seconds. `backbones.json` builds every model of timm and torchvision on meta, which takes an hour, so
it is only made with ``--backbones``; with ``--backbones 'sesr_*' resnet18`` those alone are built, the others stay
listed as they were.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

from harness import blocks, catalog, data, devices
from harness.errors import HarnessError
from harness.metrics import METRICS
from harness.models import native
from harness.models.describing import describe
from harness.models.nets import backbones
from harness.models.nets.base import BACKBONES, SingleLayer
from harness.records import Json
from harness.training import optimizers

FOLDER = Path(catalog.__file__).parent
SCHEMA = Path(__file__).parent.parent / "docs" / "suite.schema.json"


def index() -> dict[str, Json]:
    """Everything but the backbones, as planning sees it."""
    declared = {name: blocks.declaration(name) for name in blocks.BLOCKS}
    return {
        "blocks": {**declared, native.NAME: native.DECLARATION},
        "metrics": {name: METRICS[name].to_json() for name in METRICS},
        "datasets": {name: data.declaration(name) for name in data.DATASETS},
        "devices": {kind: devices.declaration(kind) for kind in devices.KINDS},
        "optimizers": {name: optimizers.declaration(name) for name in optimizers.OPTIMIZERS},
        "layers": {name: asdict(single) for name, single in _single_layers().items()},
    }


def _single_layers() -> dict[str, SingleLayer]:
    return {name: single for name in BACKBONES if (single := BACKBONES[name].single)}


def backbone_entry(name: str) -> Json | None:
    """What planning needs of a backbone; None when no block can take a place in it."""
    try:
        found = describe(name)
    except Exception as problem:  # some of timm's models cannot be run on meta, or are no image models
        print(f"{name}: left out: {str(problem).splitlines()[0][:100]}", file=sys.stderr)
        return None
    if not found["kernels"] and not found["native"]:
        return None
    return {key: found[key] for key in ("source", "kernels", "native", "images")}


def backbone_index(patterns: Sequence[str], listed: Mapping[str, Json]) -> dict[str, Json]:
    """Every backbone in which a convolution can be replaced, or that timm re-parameterizes itself.

    Those that fit a pattern, as of the shell, are built; of the others the entries in `listed` are kept. In the order
    of `listed`; new ones follow in that of `names`.
    """
    entries: dict[str, Json | None] = {}
    names = dict.fromkeys(backbones.names())
    for name in [*(name for name in listed if name in names), *(name for name in names if name not in listed)]:
        fits = any(fnmatchcase(name, pattern) for pattern in patterns)
        entries[name] = _layer_entry(name) or (backbone_entry(name) if fits else listed.get(name))
    return {name: entry for name, entry in entries.items() if entry}


def _layer_entry(name: str) -> Json | None:
    """Of a backbone that is a single layer: no block is put into it, so it has no convolutions to name."""
    if name not in _single_layers():
        return None
    return {"source": backbones.source(name), "kernels": {}, "native": False, "images": {"step": 1, "smallest": 1}}


def write_backbones(patterns: Sequence[str]) -> None:
    """Write `backbones.json`, a line for each of them."""
    found = backbone_index(patterns, catalog.backbones())
    lines = [f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    (FOLDER / "backbones.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def write() -> None:
    """Write `index.json` into the package, and the suite's schema into docs/."""
    (FOLDER / "index.json").write_text(json.dumps(index(), indent=1) + "\n", encoding="utf-8")
    from harness.suite.schema import schema_text  # reads what was just written

    if SCHEMA.parent.is_dir():
        SCHEMA.write_text(schema_text(), encoding="utf-8")


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m harness.indexing")
    parser.add_argument("--backbones", nargs="*", metavar="PATTERN", help="build those that fit, or all of them")
    wanted = parser.parse_args().backbones
    try:
        if wanted is not None:
            write_backbones(wanted or ["*"])
        write()
    except HarnessError as problem:
        sys.exit(f"error: {problem}")
