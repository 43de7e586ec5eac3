"""The processor: work is done when the call returns, so a mark is a reading of the clock."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from time import perf_counter
from typing import NoReturn

import psutil
import torch

from harness.devices.base import Device, register
from harness.errors import Unsupported
from harness.records import Json


@register
class CpuDevice(Device):
    """torch's CPU backend. It has no allocator statistics: memory is counted by `harness.memory` instead."""

    kind = "cpu"
    what = "this machine's processor"
    place = 0
    is_host = True
    batch_size = 8
    image_size = 96
    identity = ("model", "threads")

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    def available(self) -> str | None:
        return None

    def synchronize(self) -> None:
        return

    def record(self) -> float:
        return perf_counter()

    def elapsed(self, start: float, end: float) -> float:
        return end - start

    def cache_bytes(self) -> int | None:
        return last_level_cache()

    def memory_now(self) -> int:
        self._refuse()

    def memory_peak(self) -> int:
        self._refuse()

    def memory_reserved(self) -> int:
        self._refuse()

    def memory_reset(self) -> None:
        self._refuse()

    def limit_memory(self, limit: int) -> None:
        limit_memory(limit)

    def _refuse(self) -> NoReturn:
        raise Unsupported(
            "the cpu device does not count tensor memory",
            remedy="track the storages with harness.memory (metric train_memory), or use an accelerator",
        )

    def facts(self) -> dict[str, Json]:
        return {
            "kind": self.kind,
            "name": self.name,
            "model": processor_name(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_bytes": psutil.virtual_memory().total,
            "cache_bytes": self.cache_bytes(),
            "driver": None,
            "options": dict(self.options),
        }


def limit_memory(limit: int) -> None:
    """Let this process's allocations beyond `limit` bytes fail, counted from now.

    RLIMIT_DATA and not RLIMIT_AS: torch maps gigabytes of address space before its first tensor.
    Raises Unsupported where the system has no such limit.
    """
    try:
        import resource

        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        (now,) = (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (limit + now, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    except (ImportError, ValueError, OSError) as problem:
        raise Unsupported(
            f"this system cannot hold a process to an amount of memory ({problem})", remedy="use Linux, or a prediction"
        ) from problem


def processor_name() -> str:
    """The processor's marketing name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def last_level_cache(root: Path = Path("/")) -> int | None:
    """Bytes of the last-level caches behind the processors that this process may use; None where none is listed.

    Each once, however many processors share it: a processor of several dies has several, and a buffer that is to
    displace them all must exceed their sum. `root` is where sys/ is looked for.
    """
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    sizes: dict[str, int] = {}
    for processor in processors:
        folder = root / f"sys/devices/system/cpu/cpu{processor}/cache"
        found = [cache for cache in map(_cache, folder.glob("index*")) if cache is not None]
        if found:
            _, shared, size = max(found)
            sizes[shared] = size
    return sum(sizes.values()) or None


def _cache(folder: Path) -> tuple[int, str, int] | None:
    """Level, who shares it, bytes; None for a cache of instructions and for one that does not tell."""
    try:
        kind, level, shared, size = (
            (folder / name).read_text(encoding="ascii").strip() for name in ("type", "level", "shared_cpu_list", "size")
        )
        return None if kind == "Instruction" else (int(level), shared, int(size.removesuffix("K")) * 1024)
    except (OSError, ValueError):
        return None
