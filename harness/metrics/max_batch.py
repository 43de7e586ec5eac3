"""Largest batch that a training step has room for, by prediction or by trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from harness.errors import HarnessError
from harness.measuring.metric import metric, one
from harness.measuring.predicted_step import Prediction, assumptions, predicting
from harness.measuring.subject import Subject
from harness.measuring.trials import fits_for_real
from harness.quantity import Quantity
from harness.records import Json, Kind, Reading, TaskKind
from harness.units import as_bytes

LARGEST = 2**20
"""Images. No search goes further: whatever still fits is not held back by memory."""

OPTIONS: dict[str, Json] = {
    "memory": {"type": "memory", "default": None, "what": "as 24GiB; left out: all that the device has"},
    "by": {
        "choices": ["prediction", "trial"],
        "default": "prediction",
        "what": "on fake tensors, or also by trying on the device in fresh processes",
    },
}


@metric(
    "max_batch",
    TaskKind.CELL,
    Quantity("max_batch", "1", Kind.COUNT, "higher", what="predicted largest batch that fits the memory", rank=60),
    # an allocator's fragmentation is not a count
    Quantity("max_batch_tried", "1", Kind.SAMPLED, "higher", what="largest batch that fitted the memory when tried"),
    options=OPTIONS,
    on_device=False,
)
def max_batch(subject: Subject, memory: str | int | None, by: str) -> Iterable[Reading]:
    """Largest batch whose training step fits a given memory; the cell's own batch size plays no part.

    By prediction: the peak of live tensors on fake tensors, within seconds. By trial: two real steps in a fresh
    process a batch, with the process held to that memory; the search begins at the prediction.
    """
    room = _room(subject, memory)
    with predicting(subject) as prediction:
        predicted = _Predicted(prediction, room)
        found = predicted.search()
    yield one("max_batch", "train", "1", found, memory=room, **predicted.facts(found), assumptions=assumptions(subject))
    if by == "trial":
        tries: dict[int, str] = {}
        tried = largest(lambda batch: fits_for_real(subject, batch, room, tries), guess=max(found, 1))
        yield one("max_batch_tried", "train", "1", tried, memory=room, predicted=found, tries=_by_batch(tries))


def largest(fits: Callable[[int], bool], guess: int) -> int:
    """The largest number that fits, 0 for none, LARGEST at most: steps that double away from `guess`, then halving."""
    low, high, stride = 0, LARGEST + 1, 1
    probe = min(max(guess, 1), LARGEST)
    while high - low > 1:
        if fits(probe):
            low = probe
        else:
            high = probe
        bracketed = low > 0 and high <= LARGEST
        if bracketed or probe in (1, LARGEST):
            probe = (low + high) // 2
        else:
            probe = min(low + stride, LARGEST) if low else max(high - stride, 1)
            stride *= 2
    return low


@dataclass
class _Predicted:
    """Predicted peaks by batch size, each asked for once."""

    prediction: Prediction
    room: int
    peaks: dict[int, int] = field(default_factory=dict)

    def peak(self, batch: int) -> int:
        if batch not in self.peaks:
            self.peaks[batch] = self.prediction.at(batch).peak
        return self.peaks[batch]

    def search(self) -> int:
        """Beyond the weights, memory is proportional to the batch but for rounding: a straight line guesses well."""
        self.peak(2)  # one image may be too few for a batch norm
        self.peak(64)
        for _ in range(3):
            guess = self._line()
            if guess in self.peaks:
                break
            self._fits(guess)
        return largest(self._fits, guess)

    def _line(self) -> int:
        """Where the straight line through the two largest batches known reaches the room."""
        (a, at_a), (b, at_b) = sorted(self.peaks.items())[-2:]
        per_image = max((at_b - at_a) / (b - a), 1.0)
        return max(1, min(int(a + (self.room - at_a) / per_image), LARGEST))

    def _fits(self, batch: int) -> bool:
        try:
            return self.peak(batch) <= self.room
        except ValueError:  # torch: more than 1 value per channel expected when training
            if batch > 1:
                raise
            return False

    def facts(self, found: int) -> dict[str, Json]:
        around = {batch: self.peaks[batch] for batch in (found, found + 1) if batch in self.peaks}
        return {"peaks": _by_batch(around), "predictions": len(self.peaks)}


def _by_batch(values: dict[int, Json]) -> dict[str, Json]:
    return {str(batch): values[batch] for batch in sorted(values)}


def _room(subject: Subject, memory: str | int | None) -> int:
    if memory is not None:
        return int(as_bytes(memory))
    total = subject.device.facts()["memory_bytes"]
    if not total:
        raise HarnessError(f"{subject.device.name} does not say how much memory it has", remedy="write memory: 24GiB")
    return int(total)
