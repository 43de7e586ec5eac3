"""The clock that timed metrics are handed: it knows how to wait for its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.devices.base import Device


class Clock:
    """Times batches of steps on one device."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def time(self, step: Callable[[], object], repeats: int = 1, flush: bool = False) -> float:
        """Seconds for `repeats` steps together: marks around the launches, one wait at the end.

        Marks of the device, not of the host: launches return early, and a wait inside the batch would
        measure the host's launching as well. With `flush` every step finds the device's last-level cache without
        its data: each has marks of its own, so that the flush lies outside of them, and the sum is returned.
        """
        marks = [self._flushed_once(step) for _ in range(repeats)] if flush else [self._batch(step, repeats)]
        self.device.synchronize()
        return sum(self.device.elapsed(start, end) for start, end in marks)

    def _batch(self, step: Callable[[], object], repeats: int) -> tuple[Any, Any]:
        start = self.device.record()
        for _ in range(repeats):
            step()
        return start, self.device.record()

    def _flushed_once(self, step: Callable[[], object]) -> tuple[Any, Any]:
        self.device.flush()
        return self._batch(step, 1)
