"""Samples of a timed step, with what else is known of the moment at which each was taken.

Nothing is ever thrown away: a sample that something disturbed is flagged with the reason, and stays.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from harness.devices import Device
from harness.records import Json

SLOW = 1.25
"""Times the median of its round: other processes and timer ticks stay below, a lost time slice does not."""

OUTLYING = 5.0
"""Median absolute deviations (scaled to a normal's standard deviation) above the median: one sample in a million."""


LAUNCH_BOUND = 0.02
"""Share of a batch. An accelerator that is behind has work left when the host has launched the last of it: up to a
thousand launches, and half of the batch in short steps. One that waits for launches is done microseconds after them."""


@dataclass
class Batch:
    """What the caller measures of one batch of steps: its seconds, and those that the host waited for the device."""

    seconds: float = 0.0
    waited: float = 0.0


@dataclass
class Samples:
    """One step's samples of a round, in their order. All lists are as long as `seconds`, which is per step.

    `order`: the visit's rank over all steps of the round. `cpu`: seconds of this process's threads together, per
    step. `switches`: how often the kernel took the processor away during the batch. `load`: the system's average over
    the last minute. `telemetry`: what the device said of itself after the batch. `waited`: the share of the batch for
    which the host waited for an accelerator after its last launch.
    """

    seconds: list[float] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    switches: list[int] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    telemetry: list[Json] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    @contextmanager
    def recording(self, device: Device, rank: int, repeats: int) -> Iterator[Batch]:
        """Facts around one batch of `repeats` steps, whose time the caller puts into what it is given."""
        batch = Batch()
        before = resource.getrusage(resource.RUSAGE_SELF)
        yield batch
        after = resource.getrusage(resource.RUSAGE_SELF)
        self.seconds.append(batch.seconds / repeats)
        self.order.append(rank)
        self.cpu.append((_busy(after) - _busy(before)) / repeats)
        self.switches.append(after.ru_nivcsw - before.ru_nivcsw)
        self.load.append(os.getloadavg()[0])
        self.telemetry.append(device.telemetry())
        self.waited.append(batch.waited / batch.seconds if batch.seconds else 0.0)

    def facts(self, device: Device) -> dict[str, Json]:
        """All but the seconds, as a reading keeps them, with the numbers of the suspicious samples and why."""
        found: dict[str, Json] = {
            "order": self.order,
            "cpu": [float(f"{value:.4g}") for value in self.cpu],
            "switches": self.switches,
            "load": [round(value, 2) for value in self.load],
        }
        if any(self.telemetry):
            keys = list(dict.fromkeys(key for entry in self.telemetry for key in entry))
            found["telemetry"] = {key: [entry.get(key) for entry in self.telemetry] for key in keys}
        if not device.is_host and self.waited:
            found["waited"] = [round(share, 3) for share in self.waited]
            found["launch_bound"] = median(self.waited) < LAUNCH_BOUND
        suspicious = self.suspicious(device)
        if suspicious:
            found["suspicious"] = suspicious
        return found

    def suspicious(self, device: Device) -> dict[str, str]:
        """Sample number (as text: JSON's keys are) -> why it may not be what the step costs."""
        if not self.seconds:
            return {}
        middle = median(self.seconds)
        spread = 1.4826 * median(abs(value - middle) for value in self.seconds)
        found = {}
        for i, seconds in enumerate(self.seconds):
            why = device.suspicious(self.telemetry[i]) or self._disturbed(i, seconds, middle, spread)
            if why:
                found[str(i)] = why
        return found

    def _disturbed(self, i: int, seconds: float, middle: float, spread: float) -> str:
        if seconds <= SLOW * middle:
            return ""
        times = f"{seconds / middle:.2f} times the median of the round"
        if self.switches[i]:
            return f"{times}, the processor was taken away {self.switches[i]} times"
        return times if seconds > middle + OUTLYING * spread else ""


def _busy(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime
