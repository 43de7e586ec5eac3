"""What NVIDIA cards say of themselves, from a stand-in for the driver's library; no card and no package is needed."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from harness import devices
from harness.devices import nvidia
from harness.devices.fake import FakeDevice

UUID = "0f1e2d3c-0000-1111-2222-333344445555"
PROPERTIES = SimpleNamespace(
    name="NVIDIA X", uuid=UUID, pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=0, total_memory=2**34, major=9, minor=0
)


class FakeNvml(ModuleType):
    """As nvidia-ml-py's module, of cards known by a UUID and a PCI address. It knows no numbers of cards at all."""

    class NVMLError(Exception):
        pass

    def __init__(self, cards, bits=0, broken=()):
        super().__init__("pynvml")
        self.cards, self.bits, self.broken = cards, bits, broken

    def _answer(self, function, value):
        if function in self.broken:
            raise self.NVMLError("Not Supported")
        return value

    def nvmlInit(self):
        self._answer("nvmlInit", None)

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return self._handle(uuid)

    def nvmlDeviceGetHandleByPciBusId(self, address):
        return self._handle(address)

    def _handle(self, key):
        if key not in self.cards:
            raise self.NVMLError("Not Found")
        return self.cards[key]

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return self._answer("nvmlDeviceGetClockInfo", {("mine", 1): 1755}[handle, kind])

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return self._answer("nvmlDeviceGetTemperature", {("mine", 0): 64}[handle, sensor])

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._answer("nvmlDeviceGetPowerUsage", {"mine": 412_500}[handle])

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self._answer("nvmlDeviceGetCurrentClocksThrottleReasons", self.bits)


@pytest.fixture
def install(monkeypatch):
    """Puts a library in place of the real one and gives the telemetry of the device cuda:0."""

    def put(library):
        monkeypatch.setitem(sys.modules, "pynvml", library)
        device = devices.get("cuda")
        monkeypatch.setattr(device, "_properties", lambda: PROPERTIES)
        return device

    return put


ALL = {"sm_clock": 1_755_000_000, "temperature": 64, "power": 412.5}


@pytest.mark.parametrize("key", [f"GPU-{UUID}", "00000000:3B:00.0"])
def test_a_card_is_found_by_what_names_the_card_and_tells_in_si_units(install, key):
    device = install(FakeNvml({"GPU-other": "another", "00000000:01:00.0": "another", key: "mine"}, bits=0x5))
    assert device.telemetry() == {**ALL, "throttle": ["idle", "software power cap"]}
    facts = json.loads(json.dumps(device.facts()))
    assert facts["no_telemetry"] is None
    assert facts["model"] == "NVIDIA X"


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (None, "nvidia-ml-py is not installed"),
        (FakeNvml({}, broken=["nvmlInit"]), "NVML cannot be used: Not Supported"),
        (FakeNvml({"GPU-other": "another"}), "does not know this card"),
    ],
)
def test_without_library_driver_or_card_there_is_no_telemetry_but_a_reason(install, library, reason):
    device = install(library)
    assert device.telemetry() == {}
    assert reason in device.facts()["no_telemetry"]
    assert device.suspicious({}) is None


def test_the_state_of_a_card_is_its_telemetry_how_busy_it_is_and_what_is_suspicious(install):
    library = FakeNvml({f"GPU-{UUID}": "mine"}, bits=0x40)
    library.nvmlDeviceGetUtilizationRates = lambda handle: SimpleNamespace(gpu=37, memory=5)
    throttled = "hardware thermal slowdown"
    assert install(library).state() == {
        **ALL, "throttle": [throttled], "busy": 0.37, "suspicious": f"the card slowed down: {throttled}"
    }  # fmt: skip
    assert install(FakeNvml({f"GPU-{UUID}": "mine"})).state() == {**ALL, "throttle": []}
    assert install(None).state() == {}


def test_what_a_card_does_not_tell_is_left_out_and_the_rest_is_there(install):
    broken = ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksThrottleReasons"]
    device = install(FakeNvml({f"GPU-{UUID}": "mine"}, broken=broken))
    assert device.telemetry() == {"sm_clock": 1_755_000_000, "temperature": 64}


def test_the_newer_name_of_the_reasons_serves_where_the_older_is_gone(install):
    library = FakeNvml({f"GPU-{UUID}": "mine"}, broken=["nvmlDeviceGetCurrentClocksThrottleReasons"])
    library.nvmlDeviceGetCurrentClocksEventReasons = lambda handle: 0x40
    assert install(library).telemetry()["throttle"] == ["hardware thermal slowdown"]


def test_a_bit_that_nobody_knows_is_told_as_a_number():
    assert nvidia.reasons(0) == []
    assert nvidia.reasons(0x80 | 0x800) == ["hardware power brake", "reason 0x800"]


def test_the_bits_are_those_of_the_real_library():
    real = pytest.importorskip("pynvml")
    names = {
        "GpuIdle": "idle",
        "ApplicationsClocksSetting": "application clocks",
        "SwPowerCap": "software power cap",
        "HwSlowdown": "hardware slowdown",
        "SyncBoost": "sync boost",
        "SwThermalSlowdown": "software thermal slowdown",
        "HwThermalSlowdown": "hardware thermal slowdown",
        "HwPowerBrakeSlowdown": "hardware power brake",
        "DisplayClockSetting": "display clocks",
    }
    assert {getattr(real, f"nvmlClocksThrottleReason{name}"): word for name, word in names.items()} == nvidia.REASONS
    assert (nvidia.SM_CLOCK, nvidia.CORE_TEMPERATURE) == (real.NVML_CLOCK_SM, real.NVML_TEMPERATURE_GPU)


@pytest.mark.parametrize(
    ("bits", "distrusted"),
    [
        (0x000, None),
        (0x001, None),
        (0x004, None),
        (0x102, None),
        (0x008, "hardware slowdown"),
        (0x024, "software thermal slowdown"),
        (0x048, "hardware slowdown, hardware thermal slowdown"),
        (0x080, "hardware power brake"),
    ],
)
def test_heat_and_brakes_are_suspicious_and_a_power_cap_alone_is_not(bits, distrusted):
    why = devices.get("cuda").suspicious({"throttle": nvidia.reasons(bits)})
    assert why == (f"the card slowed down: {distrusted}" if distrusted else None)


def test_the_fake_device_plays_a_card():
    device = FakeDevice(sensors={"throttle": ["hardware power brake"]})
    assert device.suspicious(device.telemetry()) == "the card slowed down: hardware power brake"
    assert device.log == ["telemetry"]


def test_cudnns_switches_are_recorded_as_they_are_while_timing(install):
    device = devices.get("cuda", cudnn_benchmark=True)
    device._properties = lambda: PROPERTIES
    switches = device.facts()["cudnn"]
    assert switches["benchmark"] is True, "the option's, which holds while work is timed"
    assert set(switches) == {"version", "benchmark", "deterministic", "allow_tf32"}
