"""A device for tests: computes on the CPU, writes down who called what, and counts scripted time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain, repeat
from typing import ClassVar, TypeVar

import torch

from harness.devices import nvidia
from harness.devices.base import Device, Switch
from harness.records import Json

T = TypeVar("T")


class FakeDevice(Device):
    """Every call lands in `log`. `ticks` are the seconds that successive batches take; afterwards 1.0 for ever.

    `memory` is what memory_now answers (the allocator reserves twice its peak), `missing` the reason for its absence,
    `sensors` its telemetry, judged as an NVIDIA card's.
    """

    kind = "fake"
    OPTIONS: ClassVar[Mapping[str, Switch]] = {"cudnn_benchmark": Switch(False, "written down, and nothing else")}

    def __init__(
        self,
        ticks: Iterable[float] = (),
        *,
        memory: int = 0,
        missing: str | None = None,
        sensors: Mapping[str, Json] | None = None,
        **options: Json,
    ) -> None:
        super().__init__(**options)
        self.log: list[str] = []
        self.memory = memory
        self.missing = missing
        self.sensors = dict(sensors or {})
        self._ticks = chain(ticks, repeat(1.0))
        self._peak = memory
        self._marks = 0
        self._done = 0

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    def launching(self, step: Callable[[], T]) -> Callable[[], T]:
        """The same step, written down as ``launch`` whenever it runs."""
        return self._written_down("launch", step)

    def _written_down(self, word: str, step: Callable[[], T]) -> Callable[[], T]:
        def logged() -> T:
            self.log.append(word)
            return step()

        return logged

    def available(self) -> str | None:
        return self.missing

    def synchronize(self) -> None:
        self.log.append("synchronize")
        self._done = self._marks

    def record(self) -> int:
        self.log.append("record")
        self._marks += 1
        return self._marks

    def elapsed(self, start: int, end: int) -> float:
        if end > self._done:  # real events answer "not ready" as well
            raise RuntimeError("elapsed before synchronize")
        self.log.append("elapsed")
        return next(self._ticks)

    def flush(self) -> None:
        self.log.append("flush")

    def capture(self, step: Callable[[], object]) -> Callable[[], object]:
        """Calls `step` once, as a real capture does at least, and hands it back as the replay."""
        self.log.append("capture")
        step()
        return self._written_down("replay", step)

    def telemetry(self) -> dict[str, Json]:
        self.log.append("telemetry")
        return dict(self.sensors)

    def suspicious(self, telemetry: Mapping[str, Json]) -> str | None:
        return nvidia.suspicious(telemetry)

    def memory_now(self) -> int:
        self._peak = max(self._peak, self.memory)
        return self.memory

    def memory_peak(self) -> int:
        return max(self._peak, self.memory)

    def memory_reserved(self) -> int:
        return 2 * self.memory_peak()

    def memory_reset(self) -> None:
        self.log.append("memory_reset")
        self._peak = self.memory

    def facts(self) -> dict[str, Json]:
        return {"kind": self.kind, "name": self.name, "model": "fake", "driver": None, "memory_bytes": None}
