"""Tasks in this very process: for a debugger, and for tests. No limits, no protection, torch in the parent."""

from __future__ import annotations

from collections.abc import Callable

from harness.execution.local import Death
from harness.records import Json, Task


class InlineExecutor:
    """As LocalExecutor, without its processes; a crash here is a crash of the run."""

    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def probe(self, names: list[str]) -> Json:
        from harness.worker import worker

        return worker.probe(names)

    def perform(self, task: Task, key: str, fingerprint: str, emit: Callable[[Json], object]) -> Death | None:
        from harness.worker import worker

        worker.perform(task, key, fingerprint, emit)
        return None
