"""A run: a directory with one suite's plan, its journal, and what can be read from them."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.planning.looks import shared_confidence
from harness.records import Cell, Fingerprint, Json, Record, Status, TaskKind
from harness.store import journal

if TYPE_CHECKING:
    import pandas as pd

SETTLES = "settles"
"""The fact of a look that names the tasks which need not be done any more."""

META = "run.json"
META_VERSION = 1


class Run:
    """What a run directory holds. Reading it needs no torch; pandas is imported when a frame is asked for."""

    def __init__(self, path: Path, meta: Json) -> None:
        self.path = path
        self.meta = meta
        self.damaged = 0
        """Lines of the journal that were no records when it was last read."""

    @property
    def name(self) -> str:
        return str(self.meta["suite"]["name"])

    @property
    def suite_text(self) -> str:
        return str(self.meta["suite_text"])

    @property
    def gates(self) -> dict[str, Json]:
        return dict(self.meta["suite"]["gates"])

    @property
    def confidence(self) -> float:
        """Of every interval of this run: 99 %, shared among the looks that its budget allows."""
        budget = self.meta["suite"]["budget"]
        return shared_confidence(budget["rounds"], budget.get("precision"))

    @property
    def environment(self) -> dict[str, Json]:
        return dict(self.meta["environment"])

    @cached_property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint.from_json(self.meta["fingerprint"])

    @cached_property
    def planned_cells(self) -> dict[str, Cell]:
        return {id_: Cell.from_json(cell) for id_, cell in self.meta["plan"]["cells"].items()}

    @property
    def tasks(self) -> dict[str, Json]:
        """Task key -> kind, round, metrics (names) and cells (ids)."""
        return dict(self.meta["plan"]["tasks"])

    def records(self) -> list[Record]:
        """The newest record of every (task, cell, metric), in the order of the plan's first mention."""
        newest: dict[tuple[str, str, str], Record] = {}
        damaged = 0
        for record in journal.read(self.path / journal.NAME):
            if record is None:
                damaged += 1
            else:
                newest[record.task, record.cell, record.metric] = record
        self.damaged = damaged
        return list(newest.values())

    def open_work(self, records: list[Record] | None = None, retry: bool = False) -> dict[str, set[tuple[str, str]]]:
        """Task key -> (cell, metric) pairs that have no record yet (or, with `retry`, only a failed one)."""
        done = self.records() if records is None else records
        have = {(r.task, r.cell, r.metric) for r in done if not (retry and r.status.failed)}
        settled = {key for r in done if r.kind is TaskKind.LOOK for key in r.facts.get(SETTLES, ())}
        found: dict[str, set[tuple[str, str]]] = {}
        for key, task in self.tasks.items():
            if key in settled:
                continue
            pairs = {(c, m) for c in task["cells"] for m in task["metrics"] if (key, c, m) not in have}
            if pairs:
                found[key] = pairs
        return found

    @property
    def finished(self) -> bool:
        return not self.open_work()

    def tally(self) -> Counter[str]:
        """How many cells were measured wholly, failed in some part, are skipped, unsupported or still open."""
        worst: dict[str, list[Status]] = {}
        for record in self.records():
            worst.setdefault(record.cell, []).append(record.status)
        open_cells = {cell for pairs in self.open_work().values() for cell, _ in pairs}
        count: Counter[str] = Counter()
        for id_ in self.planned_cells:
            count[_outcome(worst.get(id_, []), id_ in open_cells)] += 1
        return count

    def command_for(self, cell_id: str) -> str:
        """A command that measures just this cell (and its reference) again."""
        suite = self.meta["suite_path"]
        overrides = "".join(f" --set {shlex.quote(item)}" for item in self.meta["overrides"])
        return f"harness run {shlex.quote(suite)}{overrides} --only {cell_id} --new"

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell: its group, whether it is the reference, and every axis."""
        from harness.store.frames import cells_frame

        return cells_frame(self.meta["plan"]["groups"], self.planned_cells)

    def rounds(self) -> pd.DataFrame:
        """One row per cell, metric, form and round: the median of the round's samples."""
        from harness.store.frames import rounds_frame

        return rounds_frame(self.records())

    def samples(self) -> pd.DataFrame:
        """One row per raw sample, with the round and its place in it."""
        from harness.store.frames import samples_frame

        return samples_frame(self.records())

    def frame(self) -> pd.DataFrame:
        """Tidy: one row per cell, metric and form, with the axes as columns, value, low, high, n and status."""
        from harness.store.summary import summarise

        return summarise(self.cells, self.rounds(), self.confidence)


def _outcome(statuses: list[Status], is_open: bool) -> str:
    if any(status.failed for status in statuses):
        return "failed"
    if is_open:
        return "open"
    if any(status.measured for status in statuses):
        return "measured"
    return "unsupported" if Status.UNSUPPORTED in statuses else "skipped"


def open_run(path: str | os.PathLike[str]) -> Run:
    """The run in directory `path`, or the newest run below it. HarnessError when there is none."""
    where = Path(path)
    if not (where / META).exists():
        inside = sorted(where.glob(f"*/{META}")) if where.is_dir() else []
        if not inside:
            raise HarnessError(f"{str(where)!r} is not a run", remedy=_runs_remedy())
        where = max(inside, key=lambda p: p.parent.name).parent
    try:
        meta = json.loads((where / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise HarnessError(
            f"{where / META} cannot be read: {problem}", remedy="restore it from a copy, or run the suite again"
        ) from None
    if not isinstance(meta, dict) or meta.get("version") != META_VERSION:
        raise HarnessError(f"{where} was written by another version of harness", remedy="read it with that version")
    return Run(where, meta)


def _runs_remedy() -> str:
    runs = sorted(str(p.parent) for p in Path("results/runs").glob(f"*/*/{META}"))
    return f"name a run directory, as {runs[-1]}" if runs else "measure one first: harness run suites/quick.yaml"
