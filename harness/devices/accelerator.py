"""Accelerators: what cuda, xpu and mps have in common, through torch's interface for all of them.

That interface is lenient: without a driver it names a device, reports 0 bytes and resets nothing. Here
whatever cannot be measured is refused instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from harness.devices import graphs
from harness.devices.base import Device
from harness.errors import Unsupported
from harness.records import Json


class AcceleratorDevice(Device):
    """Any backend known to `torch.accelerator`; `index` None is the first one."""

    indexed = True

    def __init__(self, index: int | None = None, **options: Json) -> None:
        self.index = index
        super().__init__(**options)

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.kind, self.index or 0)

    @property
    def name(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"

    def available(self) -> str | None:
        # check_available: without it a CUDA build of torch says "cuda" on a machine that has no driver
        usable = torch.accelerator.current_accelerator(check_available=True)
        if usable is None or usable.type != self.kind:
            built = torch.accelerator.current_accelerator()
            built_for = built.type if built is not None else "the cpu alone"
            lacks = "finds no such device or driver" if built_for == self.kind else f"is built for {built_for}"
            return f"no {self.kind} device can be used: torch {torch.__version__} {lacks}"
        count = torch.accelerator.device_count()
        if self.torch_device.index >= count:
            return f"there is no {self.name}: {count} {self.kind} device{'s' if count != 1 else ''} found"
        return None

    @contextmanager
    def configured(self) -> Iterator[None]:
        before = torch.accelerator.current_device_index()
        torch.accelerator.set_device_index(self.torch_device.index)
        try:
            yield
        finally:
            torch.accelerator.set_device_index(before)

    def synchronize(self) -> None:
        torch.accelerator.synchronize(self.torch_device)

    def record(self) -> torch.Event:
        event = torch.Event(self.torch_device, enable_timing=True)
        event.record(torch.accelerator.current_stream(self.torch_device))
        return event

    def elapsed(self, start: torch.Event, end: torch.Event) -> float:
        return start.elapsed_time(end) / 1e3  # torch gives milliseconds

    def cache_bytes(self) -> int | None:
        # ROCm counts one die's L2 here and leaves out the cache behind all of them, which is far larger
        size = getattr(self._properties(), "L2_cache_size", None)
        return size if size and not torch.version.hip else None

    def capture(self, step: Callable[[], object]) -> Callable[[], object]:
        if not graphs.can_capture(self.kind):
            return super().capture(step)
        return graphs.capture(self.torch_device, step)

    def memory_now(self) -> int:
        return self._bytes("allocated_bytes.all.current")

    def memory_peak(self) -> int:
        return self._bytes("allocated_bytes.all.peak")

    def memory_reserved(self) -> int:
        return self._bytes("reserved_bytes.all.peak")

    def memory_reset(self) -> None:
        self._bytes("allocated_bytes.all.peak")  # refuses where a reset would do nothing
        torch.accelerator.reset_peak_memory_stats(self.torch_device)

    def limit_memory(self, limit: int) -> None:
        hold = getattr(torch.get_device_module(self.kind), "set_per_process_memory_fraction", None)
        total = self.facts()["memory_bytes"]
        if hold is None or not total:
            super().limit_memory(limit)
        else:
            hold(min(1.0, limit / total), self.torch_device.index)

    def _bytes(self, statistic: str) -> int:
        absent = self.available()
        if absent is not None:
            raise Unsupported(absent, remedy="use a device that this machine has: harness list devices")
        stats = self._statistics()
        if not stats:  # an allocator that has not begun yet has no statistics either
            torch.empty(1, device=self.torch_device)
            stats = self._statistics()
        if statistic not in stats:
            raise Unsupported(
                f"{self.name} does not count tensor memory",
                remedy="track the storages with harness.memory on the cpu, or use cuda or xpu",
            )
        return int(stats[statistic])

    def _statistics(self) -> dict[str, Any]:
        return dict(torch.accelerator.memory_stats(self.torch_device))

    def empty_cache(self) -> None:
        torch.accelerator.empty_cache()

    def facts(self) -> dict[str, Json]:
        properties = self._properties()
        total = getattr(properties, "total_memory", None)
        capability = [getattr(properties, part, None) for part in ("major", "minor")]
        return {
            "kind": self.kind,
            "name": self.name,
            "model": str(getattr(properties, "name", self.kind)),
            "capability": ".".join(map(str, capability)) if None not in capability else None,
            "driver": self._driver(properties),
            "runtime": torch.version.cuda or torch.version.hip,
            "memory_bytes": total,
            "cache_bytes": self.cache_bytes(),
            "threads": torch.get_num_threads(),
            "options": dict(self.options),
        }

    def _properties(self) -> Any:
        read = getattr(torch.get_device_module(self.kind), "get_device_properties", None)
        return read(self.torch_device.index) if read is not None else None

    def _driver(self, properties: Any) -> str | None:
        version = getattr(properties, "driver_version", None)  # xpu's properties have it
        return str(version) if version is not None else None
