"""Devices by name: ``get("cpu")``, ``get("cuda:1", cudnn_benchmark=True)``."""

from __future__ import annotations

from harness.catalog.vocabulary import DEVICE_KINDS
from harness.devices.accelerator import AcceleratorDevice, CudaDevice
from harness.devices.base import Device
from harness.devices.clock import Clock
from harness.devices.cpu import CpuDevice
from harness.errors import HarnessError
from harness.records import Json
from harness.registry import unknown

__all__ = ["KINDS", "Clock", "Device", "get"]

KINDS = tuple(DEVICE_KINDS)
"""What `get` knows; accelerators may be followed by an index, as in ``cuda:1``."""


def get(name: str, **options: Json) -> Device:
    """The device of that name, whether or not this machine has it: `Device.available` says.

    Raises UnknownName for a name or an option that does not exist, HarnessError for an index or a value
    that cannot be.
    """
    kind, colon, index = name.partition(":")
    if kind not in KINDS:
        raise unknown("device", name, KINDS)
    if colon and (kind == "cpu" or not index.isdecimal()):
        remedy = "use cpu" if kind == "cpu" else f"use {kind} or {kind}:0"
        raise HarnessError(f"{name!r} is not a device", remedy=remedy)
    if kind == "cpu":
        return CpuDevice(**options)
    number = int(index) if colon else None
    if kind == "cuda":
        return CudaDevice(kind, number, **options)
    return AcceleratorDevice(kind, number, **options)
