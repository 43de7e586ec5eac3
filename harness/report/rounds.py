"""How a group was measured: what ended its rounds, how many samples are suspicious, whether processes were shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from harness.planning.looks import CONFIDENCE
from harness.records import Record, TaskKind
from harness.units import percent

ENDED = {
    "precision": "every ratio's interval was narrower than {precision}",
    "seconds": "the group's time was spent",
    "rounds": "all rounds were done",
}
"""The rule that ended a group, in words."""


@dataclass
class GroupMeasurement:
    """What the records of a group say about its measuring."""

    look: Record | None = None
    samples: int = 0
    suspicious: int = 0
    apart: str = ""
    launch_bound: dict[tuple[str, str], None] = field(default_factory=dict)
    """Cell and metric of the readings that measured launching; in the order of the records."""

    def sentences(self, labels: Mapping[str, str]) -> Iterator[str]:
        """`labels`: what the report calls each cell."""
        if self.look is not None:
            facts = self.look.facts
            wanted = facts.get("precision")
            why = ENDED.get(facts["rule"], "it was stopped").format(precision=f"{100 * (wanted or 0):g} %")
            widest = facts.get("widest")
            width = f", the widest is {percent(widest)}" if widest is not None else ""
            yield f"Measured for {facts['rounds']} rounds, {facts['seconds']:.0f} s: {why}{width}."
        if self.apart:
            yield (
                "Its variants did not fit into memory together and alternated in processes: "
                f"ratios are of seconds, not milliseconds, apart ({self.apart})."
            )
        if self.launch_bound:
            whose = ", ".join(f"{metric} of {labels.get(cell, cell)}" for cell, metric in self.launch_bound)
            yield (
                f"The device waited for the host's launches: {whose}. These are times of launching; with "
                "'graph: true' they are the device's own."
            )
        if self.suspicious:
            share = percent(self.suspicious / self.samples)
            yield (
                f"{self.suspicious} of {self.samples} samples are flagged as suspicious ({share}) and were kept: "
                "'harness show' says which and why."
            )


def measurements(records: Sequence[Record], groups: dict[str, str]) -> dict[str, GroupMeasurement]:
    """Group id -> how it was measured; `groups` is the group of every cell."""
    found: dict[str, GroupMeasurement] = {}
    for record in records:
        if record.kind is TaskKind.LOOK:
            found.setdefault(record.cell, GroupMeasurement()).look = record
        elif record.kind is TaskKind.VISIT and record.cell in groups:
            one = found.setdefault(groups[record.cell], GroupMeasurement())
            one.apart = str(record.facts.get("because", "")) or one.apart
            for reading in record.readings:
                one.samples += len(reading.values)
                one.suspicious += len(reading.facts.get("suspicious", ()))
                if reading.facts.get("launch_bound"):
                    one.launch_bound[record.cell, reading.metric] = None
    return found


def confidence_text(confidence: float) -> str:
    """``99 %``, and what that means for one look where the error is shared."""
    if confidence <= CONFIDENCE:
        return f"{100 * CONFIDENCE:g} %"
    looks = round((1 - CONFIDENCE) / (1 - confidence))
    return f"{100 * CONFIDENCE:g} % over {looks} looks ({100 * confidence:.4g} % each)"
