"""An executor: performs one order at a time somewhere and says how that went.

LocalExecutor (local.py) gives every order a fresh process, InlineExecutor (inline.py) has none, RemoteExecutor
(ab/remote.py) lets another source tree do the work, and AlternatingExecutor (ab/lockstep.py) makes one of these take
turns with another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from harness.records import Json, Status
from harness.worker.messages import Emit, Order


@dataclass(frozen=True)
class Death:
    """How a worker ended without finishing its order; `output`: the end of what it printed."""

    status: Status
    reason: str
    output: str


class Executor(Protocol):
    """What a run needs of whatever performs its tasks. Used as a context manager; leaving it stops it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop()

    def probe(self, names: list[str]) -> Json:
        """Facts about devices and threads, found out where torch is. HarnessError when no worker can start."""
        ...

    def perform(self, order: Order, emit: Emit) -> Death | None:
        """Hand every message of the worker to `emit` and the replies back; None when it finished, else how it ended."""
        ...

    def stop(self) -> None:
        """End what is being performed, if anything is; may be called from another thread."""
        ...
