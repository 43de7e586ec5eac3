"""The clock that timed metrics are handed: it knows how to wait for its device."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from harness.devices.base import Device


class Clock:
    """Times batches of steps on one device.

    `waited`: seconds that the host waited for the device after its last launch of the last batch. Next to none means
    that the device was done as soon as it was told what to do: the time is that of the host's launching.

    `slowdown`: a batch lasts longer by that share of its own time, for trying verdicts on; the processor is kept at
    work meanwhile, as slower code would keep it. At the end of a batch and not after every step: steps that follow a
    pause are slower themselves. For devices that are done when a step returns.
    """

    def __init__(self, device: Device, slowdown: float = 0.0) -> None:
        self.device = device
        self.slowdown = slowdown
        self.waited = 0.0

    def time(self, step: Callable[[], object], repeats: int = 1, flush: bool = False) -> float:
        """Seconds for `repeats` steps together: marks around the launches, one wait at the end.

        Marks of the device, not of the host: launches return early, and a wait inside the batch would
        measure the host's launching as well. With `flush` every step finds the device's last-level cache without
        its data: each has marks of its own, so that the flush lies outside of them, and the sum is returned.
        """
        marks = [self._flushed_once(step) for _ in range(repeats)] if flush else [self._batch(step, repeats)]
        launched = perf_counter()
        self.device.synchronize()
        self.waited = perf_counter() - launched
        return sum(self.device.elapsed(start, end) for start, end in marks)

    def _batch(self, step: Callable[[], object], repeats: int) -> tuple[Any, Any]:
        start = self.device.record()
        began = perf_counter()
        for _ in range(repeats):
            step()
        if self.slowdown:
            now = perf_counter()
            end = now + self.slowdown * (now - began)
            while now < end:
                now = perf_counter()
        return start, self.device.record()

    def _flushed_once(self, step: Callable[[], object]) -> tuple[Any, Any]:
        self.device.flush()
        return self._batch(step, 1)
