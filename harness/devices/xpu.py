"""xpu: Intel's GPUs."""

from __future__ import annotations

from harness.devices.accelerator import AcceleratorDevice
from harness.devices.base import register


@register
class XpuDevice(AcceleratorDevice):
    """As any accelerator; its allocator counts memory, and the driver's version is among torch's properties."""

    kind = "xpu"
    what = "Intel GPU"
    place = 2
    implementation = "foreach"
