"""What an NVIDIA card says of itself between two measurements: clock, temperature, power, why it holds back.

Through NVML, the driver's own library, by way of the optional package nvidia-ml-py. Where either is missing nothing
is said, and `Card.absent` has the reason: a measurement never fails for want of telemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from harness.records import Json

SM_CLOCK, CORE_TEMPERATURE = 1, 0
"""NVML_CLOCK_SM and NVML_TEMPERATURE_GPU of nvml.h."""

IDLE = "idle"
SW_THERMAL, HW_THERMAL = "software thermal slowdown", "hardware thermal slowdown"
HW_SLOWDOWN, POWER_BRAKE = "hardware slowdown", "hardware power brake"
REASONS = {
    0x001: IDLE,
    0x002: "application clocks",
    0x004: "software power cap",
    0x008: HW_SLOWDOWN,
    0x010: "sync boost",
    0x020: SW_THERMAL,
    0x040: HW_THERMAL,
    0x080: POWER_BRAKE,
    0x100: "display clocks",
}
"""The bits of nvmlClocksEventReasons (formerly ThrottleReasons) in nvml.h: why the clocks are not higher."""

UNTRUSTED = (HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE)


class Card:
    """NVML's handle of the card that torch describes by `properties` (`torch.cuda.get_device_properties`).

    Found by what names the card itself, its UUID or its place on the PCI bus: CUDA_VISIBLE_DEVICES renumbers torch's
    devices and not NVML's. `absent` is None, or why nothing can be read.
    """

    def __init__(self, properties: Any) -> None:
        self.absent: str | None = None
        self._handle: Any = None
        try:
            self._nvml: Any = import_module("pynvml")
        except ImportError:
            self.absent = "the package nvidia-ml-py is not installed"
            return
        try:
            self._nvml.nvmlInit()
            self._handle = self._found(properties)
        except Exception as problem:  # a driver that fails, in whatever way, is no reason not to measure
            self.absent = f"NVML cannot be used: {problem}"
            return
        if self._handle is None:
            self.absent = "NVML does not know this card by its UUID or its PCI address"

    def _found(self, properties: Any) -> Any:
        uuid = getattr(properties, "uuid", None)
        if uuid is not None:
            handle = self._asked("nvmlDeviceGetHandleByUUID", f"GPU-{uuid}")
            if handle is not None:
                return handle
        # a part of a card (MIG) has a UUID of its own kind, and the card's address
        domain, bus, slot = (getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device"))
        if domain is None or bus is None or slot is None:
            return None
        return self._asked("nvmlDeviceGetHandleByPciBusId", f"{domain:08X}:{bus:02X}:{slot:02X}.0")

    def _asked(self, function: str, *arguments: Any) -> Any:
        """NVML's answer; None where this driver, card or version of the package does not give one."""
        ask: Callable[..., Any] | None = getattr(self._nvml, function, None)
        try:
            return ask(*arguments) if ask is not None else None
        except self._nvml.NVMLError:
            return None

    def read(self) -> dict[str, Json]:
        """sm_clock (Hz), temperature (degrees Celsius), power (W), throttle (list of names), as far as the card tells.

        Momentary values: taken long after the work they are those of an idle card.
        """
        if self._handle is None:
            return {}
        megahertz = self._asked("nvmlDeviceGetClockInfo", self._handle, SM_CLOCK)
        milliwatts = self._asked("nvmlDeviceGetPowerUsage", self._handle)
        # the older name of the two, which every driver answers
        bits = self._asked("nvmlDeviceGetCurrentClocksThrottleReasons", self._handle)
        if bits is None:
            bits = self._asked("nvmlDeviceGetCurrentClocksEventReasons", self._handle)
        found = {
            "sm_clock": megahertz * 1_000_000 if megahertz is not None else None,
            "temperature": self._asked("nvmlDeviceGetTemperature", self._handle, CORE_TEMPERATURE),
            "power": milliwatts / 1e3 if milliwatts is not None else None,
            "throttle": reasons(bits) if bits is not None else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def state(self) -> dict[str, Json]:
        """As `read`; `busy`, the share of the last second or less with work at hand; `suspicious`, where it is."""
        if self._handle is None:
            return {}
        now = self.read()
        rates = self._asked("nvmlDeviceGetUtilizationRates", self._handle)
        found = {"busy": rates.gpu / 100 if rates is not None else None, "suspicious": suspicious(now)}
        return {**now, **{name: value for name, value in found.items() if value is not None}}


def reasons(bits: int) -> list[str]:
    """The names of the set bits; a bit that is not in `REASONS` as ``reason 0x800``."""
    single = [1 << place for place in range(bits.bit_length()) if bits >> place & 1]
    return [REASONS.get(bit, f"reason {bit:#x}") for bit in single]


def suspicious(telemetry: Mapping[str, Json]) -> str | None:
    """Why a sample taken under `telemetry` is not to be trusted, or None.

    Heat, a power brake of the machine and the hardware's own slowdown (which halves the clocks or worse) come from
    outside of what is measured and go away again: another sample would say something else. The software power cap
    is none of them: a card under load runs at it steadily, at the clock that the work's own consumption allows, so
    that it belongs to what the work costs there. Nor are clocks that someone has set, or an idle card. All of them
    are in the telemetry for whoever wants to look. NVML may report the hardware's slowdown for the moment of an
    ordinary change of clocks as well; a sample distrusted for that is one too many, and harmless.
    """
    found = [name for name in telemetry.get("throttle", []) if name in UNTRUSTED]
    return f"the card slowed down: {', '.join(found)}" if found else None
