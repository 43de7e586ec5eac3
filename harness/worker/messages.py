"""What passes between an executor and a worker: one order in, messages out, and a reply to those that ask for one.

The messages are plain JSON: ``{"begin": [cell, metric]}`` before anything is measured, so that whoever watches knows
what was under way when the process died; ``{"record": {...}}``; and in lockstep ``{"turn": true}``, which waits for a
reply, and ``{"turn_done": true}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from harness.records import Json, Task

Emit = Callable[[Json], Json | None]
"""Takes one message of a worker and returns the reply to it; None where the message asks for none."""


def asks(message: Json) -> bool:
    """Whether a worker that sent `message` waits for a reply."""
    return "turn" in message


@dataclass(frozen=True)
class Order:
    """One task for one process, and what its records are filed under: the task's `key` and the run's `fingerprint`.

    `lockstep`: another process takes turns with this one, so every visit asks for its turn. `slowed`: cell id -> share
    of a step's time that is added to it on purpose.
    """

    task: Task
    key: str
    fingerprint: str
    lockstep: bool = False
    slowed: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> Json:
        return {
            "task": self.task.to_json(),
            "key": self.key,
            "fingerprint": self.fingerprint,
            "lockstep": self.lockstep,
            "slowed": dict(self.slowed),
        }

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """From what `to_json` gave, other fields ignored; KeyError, TypeError or ValueError where one is missing."""
        return cls(
            Task.from_json(value["task"]),
            value["key"],
            value["fingerprint"],
            value["lockstep"],
            value["slowed"],
        )
