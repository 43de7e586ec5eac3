"""The choice of a run's directory: the newest unfinished one of the same work, or a new one."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from harness.errors import HarnessError
from harness.planning import Plan
from harness.records import Fingerprint, Json
from harness.store.journal import NAME as JOURNAL
from harness.store.run import META, META_VERSION, Run, open_run

ROOT = Path("results/runs")


def describe(
    plan: Plan,
    fingerprint: Fingerprint,
    environment: Json,
    *,
    suite_text: str,
    suite_path: str,
    overrides: Sequence[str],
) -> Json:
    """All that a run directory says about itself; plain JSON."""
    groups = [
        {"id": g.id, "axis": g.axis, "cells": [cell.id for cell in g.cells], "reference": g.reference}
        for g in plan.groups
    ]
    tasks = {
        task.key: {
            "kind": str(task.kind),
            "round": task.round,
            "metrics": [metric.name for metric in task.metrics],
            "cells": [cell.id for cell in task.cells],
        }
        for task in plan.tasks
    }
    excluded = [{"cell": e.cell.to_json(), "reason": e.reason} for e in plan.excluded]
    return {
        "version": META_VERSION,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "suite_path": suite_path,
        "suite_text": suite_text,
        "overrides": list(overrides),
        "suite": plan.suite.model_dump(mode="json"),
        "plan_id": plan.id,
        "plan": {
            "cells": {cell.id: cell.to_json() for cell in plan.cells},
            "groups": groups,
            "excluded": excluded,
            "tasks": tasks,
        },
        "fingerprint": fingerprint.to_json(),
        "environment": environment,
    }


def choose(meta: Json, *, out: Path | None, new: bool, retry: bool) -> tuple[Run, bool]:
    """The run to go on with, and whether it existed before.

    `out` names the directory; `new` starts over (what lay in `out` is moved aside, never deleted); `retry` also
    goes on with a finished run that has failed cells. HarnessError when `out` holds other work.
    """
    if out is not None:
        return _in_named(meta, out, new)
    if not new:
        for path in sorted((ROOT / meta["suite"]["name"]).glob(f"*/{META}"), reverse=True):
            run = _readable(path.parent)
            if run is not None and _difference(run.meta, meta) is None and run.open_work(retry=retry):
                return run, True
    return _create(fresh(ROOT / meta["suite"]["name"]), meta), False


def _in_named(meta: Json, out: Path, new: bool) -> tuple[Run, bool]:
    if not (out / META).exists():
        if (out / JOURNAL).exists() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
            raise HarnessError(
                f"{str(out)!r} exists and is no run of harness", remedy="name an empty or new directory with --out"
            )
        return _create(out, meta), False
    if new:
        aside = fresh(out.parent, stem=f"{out.name}-before-")
        out.rename(aside)
        return _create(out, meta), False
    run = open_run(out)
    difference = _difference(run.meta, meta)
    if difference:
        raise HarnessError(
            f"{str(out)!r} holds a run with {difference}",
            remedy="name another directory with --out, or start over in this one with --new",
        )
    return run, True


def _difference(old: Json, new: Json) -> str | None:
    """What keeps two runs from being one, in words; None when nothing does."""
    if old.get("plan_id") != new["plan_id"]:
        return "another suite or other options"
    if old["fingerprint"] != new["fingerprint"]:
        before, now = (Fingerprint.from_json(meta["fingerprint"]) for meta in (old, new))
        parts = [name for name in ("source", "versions", "machine") if getattr(before, name) != getattr(now, name)]
        return f"another fingerprint ({', '.join(parts)} changed)"
    return None


def _readable(path: Path) -> Run | None:
    """A run that this version can go on with; None for the others, which are simply not candidates."""
    try:
        return open_run(path)
    except HarnessError:
        return None


def fresh(root: Path, stem: str = "") -> Path:
    """A name below `root` that is not taken: the time, in UTC."""
    name = stem + datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")
    path, number = root / name, 2
    while path.exists():
        path, number = root / f"{name}-{number}", number + 1
    return path


def _create(path: Path, meta: Json) -> Run:
    try:
        path.mkdir(parents=True, exist_ok=True)
        draft = path / (META + ".part")
        draft.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        os.replace(draft, path / META)  # a kill leaves a whole file or none
    except OSError as problem:
        raise HarnessError(
            f"{str(path)!r} cannot be made: {problem}", remedy="name a place you may write to with --out"
        ) from None
    return Run(path, meta)
