"""An executor without processes: tasks run in this very process, for a debugger and for tests.

No limits, no protection, torch in the parent.
"""

from __future__ import annotations

from harness.execution.executor import Death, Executor
from harness.records import Json
from harness.worker.messages import Emit, Order


class InlineExecutor(Executor):
    """As LocalExecutor, without its processes; a crash here is a crash of the run."""

    def probe(self, names: list[str]) -> Json:
        from harness.worker import worker

        return worker.probe(names)

    def perform(self, order: Order, emit: Emit) -> Death | None:
        from harness.worker import worker

        worker.perform(order, emit)
        return None

    def stop(self) -> None:
        return
