"""Changes that somebody has accepted, with the reason: a YAML file beside the runs.

accepted:
  - cell: block == "orepa"          # or the beginning of a cell's id; left out: every cell
    metric: train_step              # left out: every metric
    form: train                     # left out: every form
    run: "2026-11-22T02-35-38Z"     # the run's directory, or a time: the change came with the first run from then on
    because: the scaling is learned now
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from harness.errors import HarnessError, SuiteError
from harness.records import Cell, Kind
from harness.registry import unknown
from harness.suite import Expression
from harness.suite.source import Source
from harness.verdict.trend.change import Change
from harness.verdict.trend.history import History, Series

DEFAULT = "annotations.yaml"

ASIDE = 2
"""Runs by which a change may be found beside its run: of 10 % in noise of 2 % 98 % are found in their place and all
within two, and a place may move by one when more runs come."""

EXAMPLE = 'write {run: "2026-11-22", because: why it is meant} and, to narrow it, cell, metric and form'

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Annotation(BaseModel, frozen=True, extra="forbid"):
    """Which changes are accepted: those of these readings that happened at `run`."""

    run: Text = Field(description="the name of the run's directory, or a time as 2026-11-22T02:35Z, quoted")
    because: Text = Field(description="the reason, for whoever reads the table next year")
    cell: Text | None = Field(None, description="an expression over the axes, or the beginning of a cell's id")
    metric: Text | None = None
    form: Text | None = None


class Accepted(BaseModel, frozen=True, extra="forbid"):
    """The whole file."""

    accepted: list[Annotation] = Field(description="a list; " + EXAMPLE)


@dataclass(frozen=True)
class Annotations:
    """The entries of a file, and the file for pointing into it."""

    source: Source
    entries: tuple[Annotation, ...]

    def fail(self, number: int, problem: str, remedy: str, key: str = "") -> SuiteError:
        return self.source.fail(problem, remedy, ("accepted", number, *([key] if key else [])))


def load_annotations(path: Path) -> Annotations:
    """Read and check a file. HarnessError with file, line and remedy for what cannot be meant."""
    if not path.is_file():
        raise HarnessError(
            f"there are no annotations {str(path)!r}", remedy="name a YAML file, or leave the option out"
        )
    source = _source(path)
    try:
        read = Accepted.model_validate(source.values)
    except ValidationError as problem:
        raise _translated(problem, source) from None
    return Annotations(source, tuple(read.accepted))


def _source(path: Path) -> Source:
    try:
        return Source.read(path)
    except SuiteError as problem:
        if problem.problem == "a suite is a mapping":
            raise SuiteError(
                "annotations are a mapping with one key",
                remedy=f"start with 'accepted:'; {EXAMPLE}",
                where=problem.where,
            ) from None
        raise


def _translated(problem: ValidationError, source: Source) -> SuiteError:
    # a misspelt key also leaves the right one missing: tell the cause
    first = min(problem.errors(), key=lambda error: error["type"] != "extra_forbidden")
    location = first["loc"]
    inside = len(location) > 1
    model: type[BaseModel] = Annotation if inside else Accepted
    if first["type"] == "extra_forbidden":
        error = unknown("key of an annotation" if inside else "key of annotations", location[-1], model.model_fields)
        return source.fail(error.problem, error.remedy, location, key=True)
    if first["type"] == "missing":
        return source.fail(f"{location[-1]} is missing", EXAMPLE, location[:-1])
    name = next((str(step) for step in reversed(location) if isinstance(step, str)), "")
    described = {**Accepted.model_fields, **Annotation.model_fields}[name].description
    return source.fail(f"{name}: {first['msg'].removeprefix('Value error, ')}", described or EXAMPLE, location)


def accept(changes: Sequence[Change], annotations: Annotations, history: History) -> list[Change]:
    """The changes, those that an annotation speaks of with its reason.

    HarnessError for an annotation that accepts nothing: of a cell, metric, form or run that is not there, or where
    nothing has changed. A slip of the pen must be seen.
    """
    accepted = list(changes)
    for number, annotation in enumerate(annotations.entries):
        selection = _Selection(annotation, number, annotations, history)
        hits = [i for i, change in enumerate(changes) if selection.holds(change)]
        if not hits:
            raise annotations.fail(
                number,
                f"nothing that this annotation means has changed within {ASIDE} runs of {annotation.run}",
                selection.elsewhere(changes),
            )
        for i in hits:
            accepted[i] = replace(accepted[i], accepted=annotation.because)
    return accepted


class _Selection:
    """The readings and the run that an annotation speaks of; refuses those that do not exist."""

    def __init__(self, annotation: Annotation, number: int, file: Annotations, history: History) -> None:
        self.annotation, self.number, self.file, self.history = annotation, number, file, history
        self.cells = self._cells()
        self.series = self._series()
        self.since = self._since()

    def holds(self, change: Change) -> bool:
        return any(self._is_of(series, change) and self._is_near(series, change) for series in self.series)

    def elsewhere(self, changes: Sequence[Change]) -> str:
        """Where these readings did change, as a remedy."""
        mine = [change for change in changes if any(self._is_of(series, change) for series in self.series)]
        names = sorted({self.history.runs[change.after].name for change in mine})
        if not names:
            return "remove it: these readings have not changed at all"
        return f"they changed in {', '.join(names[:4])}{' and elsewhere' if len(names) > 4 else ''}; or remove it"

    def _is_of(self, series: Series, change: Change) -> bool:
        same = (series.cell, series.metric, series.form) == (change.cell, change.metric, change.form)
        return same and change.after in series.runs and change.before in series.runs

    def _is_near(self, series: Series, change: Change) -> bool:
        """Whether it happened at the first run of its series since then, or a little beside it."""
        first = next((place for place, run in enumerate(series.runs) if run >= self.since), None)
        aside = ASIDE if series.kind is Kind.SAMPLED else 0
        return first is not None and abs(series.runs.index(change.after) - first) <= aside

    def _cells(self) -> frozenset[str]:
        text = self.annotation.cell
        if text is None:
            return frozenset(self.history.cells)
        found = {id_ for id_ in self.history.cells if len(text) >= 4 and id_.startswith(text)}
        if not found:
            found = {id_ for id_, cell in self.history.cells.items() if self._answer(text, cell)}
        if not found:
            remedy = 'write an expression as block == "orepa", or an id from the table\'s json'
            raise self.file.fail(
                self.number, f"cell: {text!r} is none of {len(self.history.cells)} cells", remedy, "cell"
            )
        return frozenset(found)

    def _answer(self, text: str, cell: Cell) -> bool:
        try:
            return Expression(text).holds(cell)
        except HarnessError as problem:
            raise self.file.fail(self.number, f"cell: {problem.problem}", problem.remedy, "cell") from None

    def _series(self) -> list[Series]:
        series = [one for one in self.history.series if one.cell in self.cells]
        for name in ("metric", "form"):
            wanted = getattr(self.annotation, name)
            known = {getattr(one, name) for one in series}
            if wanted is not None and wanted not in known:
                error = unknown(f"{name} of these readings", wanted, known)
                raise self.file.fail(self.number, error.problem, error.remedy, name)
            series = [one for one in series if wanted in (None, getattr(one, name))]
        return series

    def _since(self) -> int:
        """The place in the history of the run that is named, or of the first since the time that is."""
        text, runs = self.annotation.run, self.history.runs
        for place, run in enumerate(runs):
            if run.name == text:
                return place
        try:
            since = _time(text)
        except ValueError:
            error = unknown("run", text, [run.name for run in runs])
            remedy = f"{error.remedy}, or a time as {runs[-1].started}"
            raise self.file.fail(self.number, error.problem, remedy, "run") from None
        for place, run in enumerate(runs):
            if _time(run.started) >= since:
                return place
        remedy = f"name the run with which it came, at the latest {runs[-1].name}"
        raise self.file.fail(self.number, f"no run was started at {text} or later", remedy, "run")


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
