"""What is known of every sample, and which samples look suspicious. Nothing is ever dropped."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from harness import devices
from harness.devices import Clock
from harness.devices import clock as clocks
from harness.devices.fake import FakeDevice
from harness.measuring import samples as module
from harness.measuring.metric import Step
from harness.measuring.samples import SLOW, Samples
from harness.measuring.turns import TimedStep

QUIET = [0.100, 0.101, 0.099, 0.102, 0.098, 0.100, 0.101, 0.099]


def busy(seconds):
    """Work of this thread for so many seconds of the processor, however long that takes."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def of(seconds, switches=None, telemetry=None):
    n = len(seconds)
    return Samples(list(seconds), list(range(n)), list(seconds), switches or [0] * n, [0.0] * n, telemetry or [{}] * n)


def taken(work, repeats=1):
    """One real sample of `work`, with the seconds that the clock of this machine's cpu says."""
    device = devices.get("cpu")
    samples = Samples()
    with samples.recording(device, 7, repeats) as batch:
        batch.seconds = Clock(device).time(work, repeats)
    return samples


def test_the_processor_time_of_a_busy_thread_is_what_it_used():
    samples = taken(lambda: busy(0.03), repeats=3)
    assert 0.03 <= samples.cpu[0] < 0.045
    assert samples.seconds[0] > 0.9 * samples.cpu[0], "one thread cannot use more than there was"


def test_the_processor_time_of_a_sleeping_thread_is_nearly_nothing():
    samples = taken(lambda: time.sleep(0.1))
    assert samples.seconds[0] >= 0.1
    assert samples.cpu[0] < 0.02


def test_facts_are_per_step_and_of_this_batch_alone(monkeypatch):
    readings = iter(
        [
            SimpleNamespace(ru_utime=10.0, ru_stime=5.0, ru_nivcsw=100, ru_nvcsw=7),
            SimpleNamespace(ru_utime=10.4, ru_stime=5.2, ru_nivcsw=103, ru_nvcsw=99),
        ]
    )
    monkeypatch.setattr(module.resource, "getrusage", lambda who: next(readings))
    monkeypatch.setattr(module.os, "getloadavg", lambda: (1.234, 9.0, 9.0))
    samples = Samples()
    with samples.recording(FakeDevice(sensors={"power": 70.0}), 5, 4) as batch:
        batch.seconds, batch.waited = 1.0, 0.3
    facts = samples.facts(FakeDevice())
    assert samples.seconds == [0.25]
    assert facts == {
        "order": [5],
        "cpu": [pytest.approx(0.15)],
        "switches": [3],
        "load": [1.23],
        "telemetry": {"power": [70.0]},
        "waited": [0.3],
        "launch_bound": False,
    }


def test_all_lists_are_as_long_as_the_samples_and_are_plain_json():
    samples = Samples()
    for rank in (0, 3, 4):
        with samples.recording(FakeDevice(sensors={"sm_clock": 1e9}), rank, 1) as batch:
            batch.seconds = 0.1
    facts = samples.facts(FakeDevice())
    assert facts["order"] == [0, 3, 4]
    assert {len(facts[name]) for name in ("order", "cpu", "switches", "load")} == {3}
    assert facts["telemetry"] == {"sm_clock": [1e9] * 3}
    assert json.loads(json.dumps(facts)) == facts


def test_a_batch_that_raises_leaves_no_half_a_sample():
    samples = Samples()
    with pytest.raises(RuntimeError), samples.recording(FakeDevice(), 0, 1):
        raise RuntimeError("broke")
    assert samples == Samples()


def test_quiet_samples_are_not_suspicious_even_where_the_processor_was_taken_away():
    assert of(QUIET).suspicious(FakeDevice()) == {}
    assert of(QUIET, switches=[3] * 8).suspicious(FakeDevice()) == {}
    assert "suspicious" not in of(QUIET).facts(FakeDevice())
    assert Samples().suspicious(FakeDevice()) == {}


@pytest.mark.parametrize(("switches", "why"), [(2, "the processor was taken away 2 times"), (0, "1.50 times")])
def test_a_sample_far_above_its_rounds_median_is_flagged_with_what_is_known(switches, why):
    found = of([*QUIET, 0.15], switches=[0] * 8 + [switches]).suspicious(FakeDevice())
    assert list(found) == ["8"]
    assert why in found["8"]
    assert ("taken away" in found["8"]) == bool(switches)


def test_where_samples_scatter_anyway_a_slow_one_is_flagged_only_if_the_processor_was_taken_away():
    scattered = [0.07, 0.08, 0.09, 0.1, 0.11, 0.12, 0.14]
    assert of(scattered).suspicious(FakeDevice()) == {}
    assert list(of(scattered, switches=[0] * 6 + [1]).suspicious(FakeDevice())) == ["6"]


def test_up_to_a_quarter_above_the_median_is_not_called_slow():
    just = 0.1 * SLOW
    assert of([*[0.1] * 8, just], switches=[0] * 8 + [5]).suspicious(FakeDevice()) == {}
    assert list(of([*[0.1] * 8, just + 1e-6], switches=[0] * 8 + [5]).suspicious(FakeDevice())) == ["8"]


def test_a_sample_that_is_too_fast_is_not_flagged():
    assert of([*QUIET, 0.01], switches=[0] * 8 + [9]).suspicious(FakeDevice()) == {}


def test_the_devices_own_reason_flags_a_sample_whatever_it_took():
    hot = [{"throttle": []}] * 7 + [{"throttle": ["hardware thermal slowdown", "software power cap"]}]
    found = of(QUIET, telemetry=hot).suspicious(FakeDevice())
    assert found == {"7": "the card slowed down: hardware thermal slowdown"}


def test_telemetry_that_a_card_gives_only_at_times_has_holes_and_no_shifts():
    told = [{"power": 70.0}, {}, {"power": 71.0, "temperature": 60}]
    facts = of([0.1] * 3, telemetry=told).facts(FakeDevice())
    assert facts["telemetry"] == {"power": [70.0, None, 71.0], "temperature": [None, None, 60]}


def test_suspicious_samples_stay_in_the_reading_and_are_named_in_its_facts():
    device = FakeDevice(sensors={"throttle": ["hardware slowdown"]})
    timed = TimedStep(Step("latency", "train", "s", lambda: None), Clock(device), nullcontext, 1.0)
    for rank in range(4):
        timed.visit(rank)
    timed.samples.seconds[2] = 100.0
    reading = timed.reading()
    assert reading.values == tuple(timed.samples.seconds)
    assert reading.values[2] == 100.0
    assert set(reading.facts["suspicious"]) == {"0", "1", "2", "3"}


def test_an_accelerators_samples_say_for_what_share_of_a_batch_it_was_waited_for(monkeypatch):
    device = FakeDevice(ticks=[2.0, 2.0, 2.0])
    now = iter([0.0, 0.0, 1.9, 0.0, 0.0, 0.02, 0.0, 0.0, 0.01])  # begin of the batch, end of launching, end of the wait
    monkeypatch.setattr(clocks, "perf_counter", lambda: next(now))
    samples, clock = Samples(), Clock(device)
    for rank in range(3):
        with samples.recording(device, rank, 1) as batch:
            batch.seconds = clock.time(lambda: None)
            batch.waited = clock.waited
    facts = samples.facts(device)
    assert facts["waited"] == [0.95, 0.01, 0.005]
    assert facts["launch_bound"] is True, "in the median the device was done as soon as it was told what to do"
    assert not {"waited", "launch_bound"} & of(QUIET).facts(devices.get("cpu")).keys()


@pytest.mark.parametrize(("waited", "bound"), [([0.0] * 3, True), ([0.0, 0.5, 0.5], False), ([0.03] * 3, False)])
def test_a_time_is_the_hosts_launching_where_nothing_is_left_to_wait_for(waited, bound):
    samples = of([1.0] * 3)
    samples.waited = waited
    assert samples.facts(FakeDevice())["launch_bound"] is bound
