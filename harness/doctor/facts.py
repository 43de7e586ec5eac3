"""What can be known of this machine without measuring it. Plain JSON; names of processes, never their command lines."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import psutil

from harness.machine.fingerprint import versions
from harness.machine.linux import machine, variables
from harness.records import Json
from harness.store.directory import ROOT as RUNS

WATCHED = 1.0
"""Seconds for which others are watched: what a scheduler does evens out in a tenth of that."""

TOP = 3
"""Processes that are named."""

CONTAINERS = (".dockerenv", "run/.containerenv")
"""Files that Docker and Podman leave in a container's root."""


@dataclass(frozen=True)
class Shares:
    """Seconds of all processors together: busy with anything, taken by a hypervisor, and in all."""

    used: float
    stolen: float | None
    total: float

    @classmethod
    def now(cls) -> Shares:
        times = psutil.cpu_times()
        # Linux counts guests in user time already
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        idle = times.idle + getattr(times, "iowait", 0.0)
        return cls(total - idle, getattr(times, "steal", None), total)

    def __sub__(self, earlier: Shares) -> Shares:
        stolen = None if self.stolen is None or earlier.stolen is None else self.stolen - earlier.stolen
        return Shares(self.used - earlier.used, stolen, self.total - earlier.total)

    @property
    def busy(self) -> float:
        return self.used / self.total if self.total else 0.0

    @property
    def steal(self) -> float | None:
        return None if self.stolen is None or not self.total else self.stolen / self.total


def activity(seconds: float = WATCHED) -> Json:
    """Who uses the processors right now, this process and its children apart; `share` is of one processor."""
    mine = psutil.Process()
    watched = []
    for process in psutil.process_iter():
        try:
            process.cpu_percent(None)  # begins the interval
            watched.append(process)
        except psutil.Error:
            continue
    before = Shares.now()
    time.sleep(seconds)
    shares = Shares.now() - before
    own = {mine.pid, *(child.pid for child in mine.children(recursive=True))}
    users = [user for process in watched if process.pid not in own and (user := _user(process))]
    users.sort(key=lambda user: -user["share"])
    load = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    return {"busy": shares.busy, "load": load, "users": users[:TOP]}


def _user(process: psutil.Process) -> Json:
    try:
        share = process.cpu_percent(None) / 100
        return {"name": process.name(), "share": share} if share > 0 else None
    except psutil.Error:  # it has ended meanwhile, or is none of our business
        return None


def gather(probe: Json, busy: Json, root: Path = Path("/")) -> Json:
    """All facts, from what a worker found out, from `activity`, and from files below `root`."""
    set_up = machine(root, os.environ.get("LD_PRELOAD", ""))
    cpu = probe["devices"].get("cpu", {}).get("facts") or {}
    logical, affinity, quota = psutil.cpu_count() or 1, set_up["affinity"], set_up["cpu_quota"]
    usable = len(affinity) if affinity else logical
    return {
        "processor": cpu.get("model"),
        "physical": psutil.cpu_count(logical=False),
        "logical": logical,
        "usable": min(float(usable), quota) if isinstance(quota, int | float) else float(usable),
        "threads": probe["threads"],
        **set_up,
        "container": any((root / name).exists() for name in CONTAINERS),
        "activity": busy,
        "memory": _memory(),
        "disk": _disk(),
        "versions": {**versions(), "pandas": _version("pandas"), "torch": probe["torch"]},
        "devices": probe["devices"],
        "variables": variables(os.environ),
        "telemetry": util.find_spec("pynvml") is not None,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _memory() -> Json:
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {
        "total": memory.total,
        "available": memory.available,
        "swap_total": swap.total,
        "swap_used": swap.used,
    }


def _disk() -> Json:
    """Bytes free where runs are written; the folder itself may not be there yet."""
    place = next(path for path in (RUNS.absolute(), *RUNS.absolute().parents) if path.exists())
    return {"where": str(RUNS), "free": psutil.disk_usage(str(place)).free}
