"""Rounds of a group that does not fit into memory together: its variants alternate in processes instead of in visits.

The order is the same, v1..vn then vn..v1, with a fresh process for each; a variant's two halves become one record.
What is milliseconds apart otherwise is seconds apart here, so ratios are those of the round's medians, and the record
says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.records import Json, Reading, Record, Status, Task
from harness.store.pairs import ORDER

ALTERNATION = "alternation"
"""The fact of a record of such a round: ``{"alternation": "processes", "because": ...}``."""


def halves(task: Task) -> list[Task]:
    """One process per variant forward and one per variant backward, each with half of the seconds."""
    budget = replace(task.budget, seconds=task.budget.seconds / 2)
    alone = [replace(task, cells=(cell,), budget=budget) for cell in task.cells]
    return [*alone, *reversed(alone)]


def facts(because: str) -> dict[str, Json]:
    return {ALTERNATION: "processes", "because": because}


def reason_in(record: Record) -> str | None:
    """Why a record's group was measured apart; None when it was not."""
    return str(record.facts.get("because", "")) if record.facts.get(ALTERNATION) == "processes" else None


def joined(parts: Sequence[Record], because: str) -> Record:
    """A variant's two halves as one record: the samples of both, and the worse status with its reason."""
    last = parts[-1]
    bad = next((part for part in parts if not part.status.measured), None)
    if bad is not None:
        return replace(bad, facts=facts(because))
    seconds = sum(part.seconds for part in parts)
    status = Status.PARTIAL if any(part.status is Status.PARTIAL for part in parts) else last.status
    return replace(last, readings=_readings(parts), status=status, seconds=seconds, facts=facts(because))


def _readings(parts: Sequence[Record]) -> tuple[Reading, ...]:
    by_name: dict[tuple[str, str], list[Reading]] = {}
    for part in parts:
        for reading in part.readings:
            by_name.setdefault((reading.metric, reading.form), []).append(reading)
    return tuple(_concatenated(readings) for readings in by_name.values())


def _concatenated(readings: Sequence[Reading]) -> Reading:
    values = tuple(value for reading in readings for value in reading.values)
    facts: dict[str, Json] = {}
    for name, first in readings[0].facts.items():
        several = [reading.facts.get(name) for reading in readings]
        lists = [fact for fact in several if isinstance(fact, list)]
        if name == ORDER:  # ranks within one process say nothing between two
            facts["half"] = [half for half, reading in enumerate(readings) for _ in reading.values]
        elif len(lists) == len(several):
            facts[name] = [item for fact in lists for item in fact]
        else:
            facts[name] = first
    flagged = _flagged(readings)
    return replace(readings[0], values=values, facts=facts | ({"suspicious": flagged} if flagged else {}))


def _flagged(readings: Sequence[Reading]) -> dict[str, str]:
    """Suspicious samples, numbered anew."""
    found: dict[str, str] = {}
    before = 0
    for reading in readings:
        marks: Mapping[str, str] = reading.facts.get("suspicious", {})
        found |= {str(before + int(number)): why for number, why in marks.items()}
        before += len(reading.values)
    return found
