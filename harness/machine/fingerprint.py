"""The fingerprint of a run, and the longer description of where it was made. No torch: versions come from metadata."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

from harness.machine.linux import machine, variables
from harness.records import Fingerprint, Json

PACKAGES = ("torch", "torchvision", "timm", "numpy", "mlxtend")
"""Whose versions change what is measured."""

MACHINE_FACTS = ("model", "capability", "driver")
"""What of a device's facts tells one machine from another."""


@cache
def source_digest() -> str:
    """A hash of the harness's own Python: a changed line of code is another fingerprint."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def fingerprint(probe: Json) -> Fingerprint:
    """What must agree for two records to be one run, from what a worker found out."""
    found: dict[str, Json] = {"threads": probe["threads"], "system": f"{platform.system()} {platform.machine()}"}
    for name, device in sorted(probe["devices"].items()):
        facts = device.get("facts") or {}
        found[name] = {key: facts[key] for key in MACHINE_FACTS if facts.get(key) is not None}
        # whole GiB: what a kernel keeps for itself differs a little from boot to boot
        found[name]["memory_gib"] = round(facts["memory_bytes"] / 2**30) if facts.get("memory_bytes") else None
    return Fingerprint(source_digest(), versions(), found)


def environment(probe: Json, root: Path = Path("/")) -> dict[str, Json]:
    """For the reader of a report: hardware, software, what was set; hosts and paths left out.

    `root` is where the files of `machine` are looked for.
    """
    return {
        "devices": probe["devices"],
        "threads": probe["threads"],
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "versions": {**versions(), "torch": probe["torch"], "harness": _own_version()},
        "machine": machine(root, os.environ.get("LD_PRELOAD", "")),
        "variables": variables(os.environ),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": sys.implementation.name,
    }


def _own_version() -> str:
    try:
        return metadata.version("reparam-harness")
    except metadata.PackageNotFoundError:
        return "source"


def busy_warning() -> str | None:
    """A sentence when something else is using this machine's processor right now; None when it is quiet."""
    busy = psutil.cpu_percent(interval=0.3)
    if busy < BUSY_PERCENT:
        return None
    return f"this machine is {busy:.0f} % busy before anything is measured; timings will be noisier than they need be"


BUSY_PERCENT = 30.0
"""One of two cores at work is 50 %; a desktop at rest stays below 10 %."""
