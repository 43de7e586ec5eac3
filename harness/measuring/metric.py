"""What a metric is: a function from a subject to readings, with a name, its quantities and its options.

A metric of kind `cell` (no clock), `first` (once, in a process of its own) or `training` returns readings. A metric
of kind `visit` is timed: it returns the steps to time, one per form, and `turns.py` lets the variants of a group take
turns with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.measuring.explaining import explained
from harness.measuring.subject import Subject
from harness.quantity import Quantity
from harness.records import Form, Json, Reading, TaskKind
from harness.registry import Registry


@dataclass(frozen=True)
class Step:
    """One thing to time: a call that launches a whole step of `form`, for the quantity `metric`."""

    metric: str
    form: Form
    unit: str
    run: Callable[[], object]
    facts: Mapping[str, Json] = field(default_factory=dict)
    cold: bool = False
    """Whether the device's caches are flushed before every step, outside the time that is measured."""


@dataclass(frozen=True)
class Metric:
    """A registered metric; `measure(subject, **options)` does the work."""

    name: str
    task: TaskKind
    quantities: tuple[Quantity, ...]
    options: Mapping[str, Json]
    measure: Callable[..., Iterable[Any]]
    what: str
    on_device: bool = True
    """Whether it touches the cell's device; counts of shapes do not, and work where the device is absent."""
    rates: tuple[Quantity, ...] = ()
    """Quantities that are computed from its own and others when a run is read."""

    def readings(self, subject: Subject, options: Mapping[str, Json]) -> list[Reading]:
        return self._made(subject, options)

    def steps(self, subject: Subject, options: Mapping[str, Json]) -> list[Step]:
        return self._made(subject, options)

    def _made(self, subject: Subject, options: Mapping[str, Json]) -> list[Any]:
        try:
            return list(self.measure(subject, **self.filled(options)))
        except Exception as problem:
            clear = explained(problem, subject.cell)
            if clear is problem:
                raise
            raise clear from problem

    def filled(self, options: Mapping[str, Json]) -> dict[str, Json]:
        return {name: options.get(name, declared["default"]) for name, declared in self.options.items()}

    def to_json(self) -> Json:
        """As the catalog has it."""
        return {
            "task": str(self.task),
            "quantities": [quantity.to_json() for quantity in self.quantities],
            "rates": [rate.to_json() for rate in self.rates],
            "options": dict(self.options),
            "what": self.what,
        }


METRICS: Registry[Metric] = Registry("metric")


def metric(
    name: str,
    task: TaskKind,
    *quantities: Quantity,
    options: Mapping[str, Json] | None = None,
    on_device: bool = True,
) -> Callable[[Callable[..., Iterable[Any]]], Callable[..., Iterable[Any]]]:
    """Register the function below as the metric `name`; the first line of its docstring describes it.

    It reads every quantity but those with a `rate`.
    """
    read = tuple(quantity for quantity in quantities if quantity.rate is None)
    rates = tuple(quantity for quantity in quantities if quantity.rate is not None)

    def add(function: Callable[..., Iterable[Any]]) -> Callable[..., Iterable[Any]]:
        what = (function.__doc__ or "").strip().splitlines()[0]
        METRICS.register(name)(Metric(name, task, read, options or {}, function, what, on_device, rates))
        return function

    return add


def one(metric: str, form: Form, unit: str, values: Sequence[float] | float, **facts: Json) -> Reading:
    """A reading from one value or several."""
    several = (float(values),) if isinstance(values, int | float) else tuple(float(value) for value in values)
    return Reading(metric, form, unit, several, facts)
