"""A plan in print, before anything is measured. Starts without pandas and torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tabulate import tabulate

from harness.planning import Group, Plan, seconds_at_least
from harness.records import AXES, TaskKind
from harness.units import duration, readable

if TYPE_CHECKING:
    from harness.execution.predicted_plan import Prediction


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
    room = "" if prediction.room is None else readable(prediction.room, "B")
    verdict = {
        True: f"fits {room}",
        False: f"WOULD NOT FIT {room}",
        None: "the device is not here: its size is unknown",
    }
    return readable(prediction.peak, "B"), verdict[prediction.fits]


def _predictions_text(predictions: Mapping[str, Prediction]) -> str:
    large = sum(prediction.fits is False for prediction in predictions.values())
    return (
        "memory is predicted: the peak of live tensors over a training step, by the CPU's operators, without "
        f"workspaces and fragmentation; {large} of {len(predictions)} cells would not fit (nothing is skipped for that)"
    )


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
