"""mps: Apple's GPUs."""

from __future__ import annotations

from harness.devices.accelerator import AcceleratorDevice
from harness.devices.base import register


@register
class MpsDevice(AcceleratorDevice):
    """As any accelerator, but torch counts no memory on it and there are no graphs."""

    kind = "mps"
    what = "Apple GPU"
    place = 3
