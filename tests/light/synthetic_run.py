"""A stand-in for a run: a small suite's frames made from numbers, no store and no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.records import Cell, Fingerprint, Reading, Record, Status, TaskKind, Variant
from harness.store.summary import summarise

KINDS = {
    "params": ("1", "count", "lower"),
    "macs": ("MAC", "count", "lower"),
    "macs_kernel": ("MAC", "count", "lower"),
    "saved_memory": ("B", "count", "lower"),
    "train_memory": ("B", "count", "lower"),
    "train_step": ("s", "sampled", "lower"),
    "latency": ("s", "sampled", "lower"),
    "fusion_error": ("1", "bounded", "lower"),
    "changed_predictions": ("1", "sampled", "lower"),
    "accuracy": ("fraction", "sampled", "higher"),
}


def cell(block: str = "conv", **axes: Any) -> Cell:
    defaults: dict[str, Any] = {
        "backbone": Variant("resnet18"), "kernel_size": 3, "device": Variant("cpu"), "dtype": "float32",
        "memory_format": "contiguous", "batch_size": 8, "image_size": 96, "optimizer": Variant("sgd"),
        "where": Variant("3x3"), "dataset": Variant("mnist"), "threads": None,
    }  # fmt: skip
    return Cell(block=Variant(block), **{**defaults, **axes})


def cells_frame(cells: Iterable[Cell], compared: str = "block", reference: Any = "conv") -> pd.DataFrame:
    rows = []
    for one in cells:
        axes = one.axes()
        rows.append({"group": one.without(compared), "reference": axes[compared] == reference, "compared": compared})
        rows[-1].update(axes)
    return pd.DataFrame(rows, index=[one.id for one in cells])


MACHINE = Fingerprint("abc", {"torch": "2.14.1"}, {"cpu": {"model": "Some CPU"}, "threads": 2})


@dataclass
class FakeRun:
    """Readings are added with `put`; everything else has a plain default."""

    cells: pd.DataFrame
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    path: Path = Path("results/runs/quick/now")
    name: str = "quick"
    suite_text: str = "axes: {block: [conv, orepa]}"
    environment: dict[str, Any] = field(
        default_factory=lambda: {"device": "Some CPU @ 2.0 GHz", "threads": 2, "torch": "2.14.1"}
    )
    fingerprint: Fingerprint = MACHINE
    confidence: float = 0.99
    rows: list[dict[str, Any]] = field(default_factory=list)
    taken: list[Record] = field(default_factory=list)

    def put(self, cell: str, metric: str, values: Any, form: str = "") -> FakeRun:
        unit, kind, better = KINDS.get(metric, ("1", "bounded", "lower"))
        values = np.atleast_1d(np.asarray(values, dtype=float))
        for number, value in enumerate(values):
            row = {"cell": cell, "metric": metric, "form": form, "unit": unit, "kind": kind, "better": better}
            self.rows.append({**row, "round": number, "value": float(value), "status": "ok"})
            reading = Reading(metric, form, unit, (float(value),))  # type: ignore[arg-type]
            self._record(cell, metric, number, Status.OK, "", (reading,))
        return self

    def fail(self, cell: str, status: str = "oom", reason: str = "no memory", metric: str = "") -> FakeRun:
        unit, kind, better = KINDS.get(metric, ("", "", ""))
        row = {"cell": cell, "metric": metric, "form": "", "unit": unit, "kind": kind, "better": better}
        self.rows.append({**row, "round": 0, "value": np.nan, "status": status})
        self._record(cell, metric, 0, Status(status), reason, ())
        return self

    def _record(self, cell: str, metric: str, number: int, status: Status, reason: str, readings: Any) -> None:
        task = f"{metric} in round {number}"
        text = {"traceback": "Traceback: deep inside", "output": "last words"} if not status.measured else {}
        self.taken.append(Record(task, TaskKind.CELL, cell, metric, number, "f", status, readings, reason, **text))

    def rounds(self) -> pd.DataFrame:
        columns = ["cell", "metric", "form", "unit", "kind", "better", "round", "value", "status"]
        return pd.DataFrame(self.rows, columns=columns)

    def frame(self) -> pd.DataFrame:
        return summarise(self.cells, self.rounds(), self.confidence)

    def samples(self) -> pd.DataFrame:
        return self.rounds()

    def records(self) -> list[Record]:
        return self.taken

    def command_for(self, cell_id: str) -> str:
        return f"harness run suites/quick.yaml --only {cell_id}"


CONV, OREPA, DBB = cell("conv").id, cell("orepa").id, cell("dbb").id


def noisy(mean: float, rng: np.random.Generator, rounds: int = 10, sd: float = 0.02) -> Any:
    return mean * np.exp(rng.normal(0, sd, rounds))


def full_run(
    seed: int = 0, slow: float = 1.0, reference_slow: float = 1.0, busy: float = 1.0, extra: int = 0, **kwargs: Any
) -> FakeRun:
    """conv and orepa with every metric.

    `slow` and `extra` bytes are what a change did to orepa, `reference_slow` to conv; `busy` slows everything.
    """
    rng = np.random.default_rng(seed)
    run = FakeRun(cells_frame([cell("conv"), cell("orepa")]), **kwargs)
    for block, times in ((CONV, 1.0), (OREPA, 1.4)):
        factor = busy * (reference_slow if block == CONV else slow)
        run.put(block, "params", 11_000_000 * times, "train").put(block, "params", 11_000_000, "fused")
        run.put(block, "macs", 3.6e8 * 8, "fused")
        run.put(block, "saved_memory", 2e8 * times + (extra if block == OREPA else 0))
        run.put(block, "train_memory", 4e8 * times)
        run.put(block, "train_step", factor * noisy(0.2 * times, rng))
        run.put(block, "latency", factor * noisy(0.05 * times, rng), "train")
        run.put(block, "latency", busy * noisy(0.05, rng) * (reference_slow if block == CONV else 1.0), "fused")
        run.put(block, "fusion_error", 3e-7)
        run.put(block, "accuracy", [0.95, 0.96, 0.955, 0.957, 0.951], "train")
    return run
