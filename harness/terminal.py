"""What the terminal shows before anything is measured: plans and lists. Starts without pandas and torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from textwrap import wrap
from typing import TYPE_CHECKING

from tabulate import tabulate

from harness import catalog
from harness.catalog import vocabulary
from harness.errors import UnknownName
from harness.planning import Group, Plan, seconds_at_least
from harness.planning.duration import duration
from harness.records import AXES, Json, TaskKind
from harness.registry import unknown

if TYPE_CHECKING:
    from harness.execution.prediction import Prediction

LISTS = ("blocks", "backbones", "metrics", "datasets", "devices")


def plan_text(plan: Plan, predictions: Mapping[str, Prediction] | None = None) -> str:
    """Cells by group (and their memory), exclusions with their reasons, tasks and the least time they need."""
    parts = [f"suite {plan.suite.name}: {plan.suite.description}".rstrip(": ")]
    parts += [_group_text(group, predictions) for group in plan.groups]
    if plan.excluded:
        reasons = Counter(e.reason for e in plan.excluded)
        parts.append(f"excluded: {len(plan.excluded)} of {len(plan.excluded) + len(plan.cells)} cells")
        parts += [_reason_text(plan, reason, count) for reason, count in reasons.items()]
    lonely = [group for group in plan.groups if group.reference is None]
    if lonely and len(plan.groups[0].cells) > 1:
        parts.append(f"note: {len(lonely)} of {len(plan.groups)} groups have no reference, so no ratios")
    parts.append(_work_text(plan))
    if predictions is not None:
        parts.append(_predictions_text(predictions))
    return "\n".join(parts)


def _group_text(group: Group, predictions: Mapping[str, Prediction] | None) -> str:
    first = group.cells[0].axes()
    shared = ", ".join(
        f"{axis} {first[axis]}" for axis in AXES if axis != group.axis and first[axis] not in (None, "", False)
    )
    headers, rows = ["cell", group.axis, ""], []
    for cell in group.cells:
        row = [cell.id, cell.axes()[group.axis], "reference" if cell.id == group.reference else ""]
        rows.append([*row, *_memory_texts(predictions[cell.id])] if predictions is not None else row)
    if predictions is not None:
        headers += ["training memory (predicted)", ""]
    return f"\ngroup {group.id}: {shared}\n" + tabulate(rows, headers=headers, tablefmt="simple")


def _memory_texts(prediction: Prediction) -> tuple[str, str]:
    if prediction.peak is None:
        return "–", prediction.reason
    room = "" if prediction.room is None else readable(prediction.room)
    verdict = {
        True: f"fits {room}",
        False: f"WOULD NOT FIT {room}",
        None: "the device is not here: its size is unknown",
    }
    return readable(prediction.peak), verdict[prediction.fits]


def _predictions_text(predictions: Mapping[str, Prediction]) -> str:
    large = sum(prediction.fits is False for prediction in predictions.values())
    return (
        "memory is predicted: the peak of live tensors over a training step, by the CPU's operators, without "
        f"workspaces and fragmentation; {large} of {len(predictions)} cells would not fit (nothing is skipped for that)"
    )


def readable(size: int) -> str:
    """Bytes with a unit of 1024."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def _reason_text(plan: Plan, reason: str, count: int) -> str:
    cells = [e.cell.axes() for e in plan.excluded if e.reason == reason]
    varying = [axis for axis in AXES if len({cell.axes()[axis] for cell in plan.cells} | {c[axis] for c in cells}) > 1]
    shown = "; ".join(" ".join(f"{axis}={cell[axis]}" for axis in varying) for cell in cells[:4])
    return f"  {count} x {reason}\n      {shown}{'; ...' if count > 4 else ''}"


def _work_text(plan: Plan) -> str:
    kinds = Counter(task.kind for task in plan.tasks)
    names = {
        TaskKind.CELL: "of counts and exactness",
        TaskKind.VISIT: "timed rounds of a group",
        TaskKind.FIRST: "first steps",
        TaskKind.TRAINING: "trainings",
    }
    tasks = ", ".join(f"{kinds[kind]} {names[kind]}" for kind in TaskKind if kinds[kind])
    least = duration(seconds_at_least(plan.tasks))
    return (
        f"\n{len(plan.cells)} cells in {len(plan.groups)} groups; {len(plan.tasks)} processes ({tasks}); "
        f"at least {least}, before building models, warm-up and training"
    )


def plan_json(plan: Plan, predictions: Mapping[str, Prediction] | None = None) -> str:
    """The plan for a program: cells, groups, exclusions, tasks, and predictions in bytes where there are any."""
    groups = [
        {"id": g.id, "axis": g.axis, "cells": [cell.id for cell in g.cells], "reference": g.reference}
        for g in plan.groups
    ]
    value = {
        "suite": plan.suite.name,
        "cells": {cell.id: cell.to_json() for cell in plan.cells},
        "groups": groups,
        "excluded": [{"cell": e.cell.to_json(), "reason": e.reason} for e in plan.excluded],
        "tasks": [
            {"key": t.key, "kind": t.kind, "round": t.round, "cells": [c.id for c in t.cells]} for t in plan.tasks
        ],
        "seconds_at_least": seconds_at_least(plan.tasks),
    }
    if predictions is not None:
        value["predictions"] = {
            cell: {"peak": p.peak, "room": p.room, "fits": p.fits, "reason": p.reason}
            for cell, p in predictions.items()
        }
    return json.dumps(value, indent=1)


def list_text(what: str, as_json: bool) -> str:
    """One of `LISTS` as a table or as JSON."""
    tables: dict[str, dict[str, Json]] = {
        "blocks": catalog.blocks(),
        "backbones": catalog.backbones(),
        "metrics": catalog.metrics(),
        "datasets": catalog.datasets(),
        "devices": {name: {"what": what} for name, what in vocabulary.DEVICE_KINDS.items()},
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
