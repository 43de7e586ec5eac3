"""What a format of the report is: a name, a file ending, and a function from a run's report to text.

One file in exporters/ each. They are imported to list their names, so whatever takes time to import is imported inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.registry import Registry

if TYPE_CHECKING:
    from harness.report.page import RunReport

Render = Callable[["RunReport"], str]


@dataclass(frozen=True)
class Exporter:
    """A registered format; `render` gives the whole file."""

    name: str
    ending: str
    render: Render


EXPORTERS: Registry[Exporter] = Registry("report format")


def exporter(name: str, ending: str) -> Callable[[Render], Render]:
    """Register the function below as the report's format `name`, in files with that ending (without the dot)."""

    def add(render: Render) -> Render:
        EXPORTERS.register(name)(Exporter(name, ending, render))
        return render

    return add
