"""Devices by name, one file a kind: ``get("cpu")``, ``get("cuda:1", cudnn_benchmark=True)``."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from harness.devices.base import DEVICES, Device, declaration, kinds
from harness.devices.clock import Clock
from harness.errors import HarnessError
from harness.records import Json
from harness.registry import unknown

__all__ = ["DEVICES", "KINDS", "Clock", "Device", "declaration", "get", "kind_of"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

KINDS = tuple(kinds())
"""What `get` knows; those that are indexed may be followed by an index, as in ``cuda:1``."""


def kind_of(name: str) -> type[Device]:
    """The kind of the device that a suite calls so; its index is not looked at. Raises UnknownName."""
    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise unknown("device", name, KINDS)
    return DEVICES[kind]


def get(name: str, **options: Json) -> Device:
    """The device of that name, whether or not this machine has it: `Device.available` says.

    Raises UnknownName for a name or an option that does not exist, HarnessError for an index or a value
    that cannot be.
    """
    device = kind_of(name)
    kind, colon, index = name.partition(":")
    if not colon:
        return device(**options)
    if not device.indexed or not index.isdecimal():
        remedy = f"use {kind} or {kind}:0" if device.indexed else f"use {kind}"
        raise HarnessError(f"{name!r} is not a device", remedy=remedy)
    return device(index=int(index), **options)
