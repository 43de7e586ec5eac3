"""What a suite can name, in print. Starts without pandas and torch."""

from __future__ import annotations

import json
import re
from textwrap import wrap

from tabulate import tabulate

from harness import catalog
from harness.errors import UnknownName
from harness.records import Json
from harness.registry import unknown

LISTS = ("blocks", "backbones", "metrics", "datasets", "devices")


def list_text(what: str, as_json: bool) -> str:
    """One of `LISTS` as a table or as JSON."""
    tables: dict[str, dict[str, Json]] = {
        "blocks": catalog.blocks(),
        "backbones": catalog.backbones(),
        "metrics": catalog.metrics(),
        "datasets": catalog.datasets(),
        "devices": {name: {"what": device["what"]} for name, device in catalog.devices().items()},
    }
    if what not in tables:
        raise _unknown_list(what)
    if as_json:
        return json.dumps(tables[what], indent=1)
    rows, headers = ROWS[what](tables[what])
    table = tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
    return f"{table}\n\n{_options_text(tables[what])}" if what == "blocks" else table


def _unknown_list(what: str) -> UnknownName:
    return unknown("list", what, LISTS)


def _options_text(table: dict[str, Json]) -> str:
    """Every option of every block, what it may be and what it is when left out."""
    needs = {name: block["limits"].get("needs") for name, block in sorted(table.items())}
    lines = [f"{name} fuses exactly for {need}" for name, need in needs.items() if need]
    lines += ["options (default): write {dbb: {average: false}}; harness list blocks --format json says what each is"]
    for name, block in sorted(table.items()):
        shown = [
            f"{key}={'|'.join(map(_word, option['choices']))} ({_word(option['default'])})"
            for key, option in block["options"].items()
            if len(option["choices"]) > 1
        ]
        if shown:
            lines += wrap(", ".join(shown), 110, initial_indent=f"  {name}: ", subsequent_indent="      ")
    return "\n".join(lines)


def _word(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _block_rows(table: dict[str, Json]) -> tuple[list[list[str]], list[str]]:
    rows = [
        [
            name,
            b["family"],
            "yes" if b["fusable"] else "no",
            "yes" if "online" in b["evaluations"] else "no",
            *_limits(b["limits"]),
            _published(b["paper"]),
        ]
        for name, b in sorted(table.items())
    ]
    return rows, ["block", "family", "fusable", "online", "k", "stride", "groups", "dilation", "published"]


def _limits(limits: Json) -> list[str]:
    """Kernel sizes, strides, groups and dilations in a few characters each."""
    sizes, groups = limits["kernel_size"], limits.get("groups", "")
    odd = sizes == list(range(sizes[0], sizes[-1] + 1, 2)) if sizes else False
    k = f"{sizes[0]}-{sizes[-1]}" if odd and len(sizes) > 2 else ", ".join(map(str, sizes))
    rest = [_several(limits.get(key, "")) for key in ("stride", "dilation")]
    groups += ", c_in = c_out" if limits.get("same_channels") and groups != "depthwise" else ""
    multiple = limits.get("channel_multiple", 1)
    groups += f", channels in {multiple}s" if multiple > 1 else ""
    return [k, rest[0], groups, rest[1]]


def _several(allowed: Json) -> str:
    return allowed if isinstance(allowed, str) else ", ".join(map(str, allowed))


def _published(paper: str) -> str:
    """The citation without its title: authors, venue and year, number."""
    authors, *rest = paper.split(", ")
    venue = next((i for i, part in enumerate(rest) if re.search(r"(19|20)\d\d$|^arXiv:", part)), None)
    return paper if venue is None else ", ".join([authors, *rest[venue:]])


def _backbone_rows(table: dict[str, Json]) -> tuple[list[list[str]], list[str]]:
    rows = []
    for name, b in table.items():
        kernels = ", ".join(
            f"{k}x{k}: {count}" for k, count in sorted(b["kernels"].items(), key=lambda item: int(item[0]))
        )
        rows.append([name, b["source"], kernels, "yes" if b["native"] else ""])
    return rows, ["backbone", "source", "convolutions that can be replaced", "native"]


def _metric_rows(table: dict[str, Json]) -> tuple[list[list[str]], list[str]]:
    rows = [
        [name, q["name"], q["unit"], q["kind"], ", ".join(q["forms"]), q["what"]]
        for name, metric in sorted(table.items())
        for q in metric["quantities"]
    ]
    return rows, ["metric", "quantity", "unit", "kind", "forms", "what"]


def _simple_rows(table: dict[str, Json]) -> tuple[list[list[str]], list[str]]:
    return [[name, entry["what"]] for name, entry in table.items()], ["name", "what"]


ROWS = {
    "blocks": _block_rows,
    "backbones": _backbone_rows,
    "metrics": _metric_rows,
    "datasets": _simple_rows,
    "devices": _simple_rows,
}
