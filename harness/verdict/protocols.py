"""What verdicts and reports ask of a run, and who failed in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.records import Fingerprint, Record, Status

if TYPE_CHECKING:
    import pandas as pd


class Run(Protocol):
    """The part of `harness.store`'s run that is needed here; tests hand in a small stand-in.

    `cells`: index is the cell id; `group`, `reference`, `compared` and the axes. `rounds()`: cell, metric,
    form, unit, kind, better, round, value (the round's median, of a close reading the first value, SI units),
    status, and optionally visits (the samples of a reading whose variants took turns, else None). `gates`: metric to
    gate, threshold (relative), floor (SI units), limit (of bounded quantities; of close ones the tolerance),
    side_by_side (relative, of `ab`); what the suite left out is absent or None.
    """

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def cells(self) -> pd.DataFrame: ...
    @property
    def fingerprint(self) -> Fingerprint: ...
    @property
    def confidence(self) -> float: ...
    @property
    def environment(self) -> Mapping[str, Any]: ...
    @property
    def suite_text(self) -> str: ...
    @property
    def gates(self) -> Mapping[str, Mapping[str, Any]]: ...
    def rounds(self) -> pd.DataFrame: ...
    def frame(self) -> pd.DataFrame: ...
    def samples(self) -> pd.DataFrame: ...
    def records(self) -> list[Record]: ...
    def command_for(self, cell_id: str, /) -> str: ...


def unmeasured(records: Iterable[Record]) -> dict[str, tuple[Status, str]]:
    """Cell id to status and reason, for cells with a metric that gave no reading; a failure outranks the rest.

    Of a task that was tried more than once only the last try counts.
    """
    last = {(record.task, record.cell, record.metric): record for record in records}
    found: dict[str, tuple[Status, str]] = {}
    for record in last.values():
        if record.status.measured:
            continue
        reason = f"{record.metric}: {record.reason}" if record.metric and record.reason else record.reason
        known = found.get(record.cell)
        if known is None or (record.status.failed and not known[0].failed):
            found[record.cell] = (record.status, reason)
    return found


def failures(records: Iterable[Record]) -> dict[str, tuple[Status, str]]:
    """Cell id to status and reason, for the cells that failed (out of memory, timeout, error, killed)."""
    return {cell: found for cell, found in unmeasured(records).items() if found[0].failed}
