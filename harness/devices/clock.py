"""The clock that timed metrics are handed: it knows how to wait for its device."""

from __future__ import annotations

from collections.abc import Callable

from harness.devices.base import Device


class Clock:
    """Times batches of steps on one device."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def time(self, step: Callable[[], object], repeats: int = 1) -> float:
        """Seconds for `repeats` steps together: marks around the launches, one wait at the end.

        Marks of the device, not of the host: launches return early, and a wait inside the batch would
        measure the host's launching as well.
        """
        start = self.device.record()
        for _ in range(repeats):
            step()
        end = self.device.record()
        self.device.synchronize()
        return self.device.elapsed(start, end)
