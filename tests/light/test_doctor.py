"""`harness doctor`: the arithmetic of noise, what is found in facts, and the examination with a scripted executor."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from copy import deepcopy

import numpy as np
import psutil
import pytest
from rich.console import Console
from scipy import stats

from harness.doctor import Severity, examine
from harness.doctor.facts import Shares, activity, gather
from harness.doctor.findings import findings_in
from harness.doctor.steadiness import ROUNDS, noise_of
from harness.errors import HarnessError
from harness.report.doctor_text import doctor_json, doctor_text

GIB = 2**30
PROBE = {
    "threads": 2,
    "torch": "2.14.1",
    "devices": {
        "cpu": {"absent": None, "facts": {"model": "Some CPU", "memory_bytes": 16 * GIB}},
        "cuda": {"absent": "no cuda device can be used: no driver"},
    },
}
QUIET = {
    "processor": "Some CPU", "physical": 4, "logical": 8, "usable": 8.0, "threads": 4,
    "affinity": list(range(8)), "cpu_quota": "unlimited", "smt": True,
    "governors": ["performance"], "frequency_driver": ["acpi-cpufreq"], "turbo": False,
    "virtual": False, "hypervisor": None, "container": False,
    "activity": {"busy": 0.01, "load": [0.1, 0.1, 0.1], "users": [{"name": "sshd", "share": 0.01}]},
    "memory": {"total": 16 * GIB, "available": 12 * GIB, "swap_total": 0, "swap_used": 0},
    "disk": {"where": "results/runs", "free": 50 * GIB},
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
    "devices": {**PROBE["devices"], "cuda": {"absent": None, "facts": {"model": "Some GPU"}}},
    "variables": {}, "telemetry": True,
}  # fmt: skip


def a_round(log_ratio=0.0, step=0.002, passes=21, involuntary=0, wall=1.0, cpu=1.9, threads=2, jitter=0.0, seed=0):
    noise = jitter * np.random.default_rng(seed).normal(size=(2, passes)) if jitter else np.zeros((2, passes))
    first, second = step * np.exp(noise[0]), step * np.exp(log_ratio + noise[1])
    pairs = [[float(a), float(b)] for a, b in zip(first, second, strict=True)]
    return {"passes": pairs, "repeats": 5, "wall": wall, "cpu": cpu, "involuntary": involuntary, "threads": threads}


def rounds_with(sd, rounds=ROUNDS, **more):
    """Rounds whose log ratios have exactly this standard deviation."""
    logs = np.linspace(-1, 1, rounds)
    return [a_round(sd * log / logs.std(ddof=1), **more) for log in logs]


STEADY = noise_of(rounds_with(0.001), steal=0.0)


def about(subject, facts=None, noise=STEADY, **changes):
    """The findings about one subject on a quiet machine with these facts changed."""
    changed = {**deepcopy(QUIET), **(facts or {}), **changes}
    return [finding for finding in findings_in(changed, noise) if finding.about == subject]


# the noise


def test_a_round_is_the_median_over_its_passes_and_survives_passes_that_were_disturbed():
    quiet, disturbed = a_round(log_ratio=math.log(1.1)), a_round(log_ratio=math.log(1.1))
    disturbed["passes"] = [[a, 7 * b] if i < 9 else [a, b] for i, (a, b) in enumerate(disturbed["passes"])]
    assert noise_of([quiet, disturbed]).sd == pytest.approx(0, abs=1e-12)
    assert noise_of([quiet, a_round()]).sd == pytest.approx(math.log(1.1) / math.sqrt(2))


def test_the_smallest_effect_is_the_half_width_of_a_99_percent_interval_over_ten_rounds():
    noise = noise_of(rounds_with(0.02))
    assert noise.sd == pytest.approx(0.02)
    low, high = stats.t.interval(0.99, 9, 0.0, 0.02 / math.sqrt(10))
    assert noise.resolves == pytest.approx(math.expm1(high))
    assert low == pytest.approx(-high)


def test_the_spread_between_processes_is_known_as_well_as_chi_squared_says():
    rng = np.random.default_rng(5)
    covered = sum(
        noise_of([a_round(log, passes=1) for log in rng.normal(0, 0.01, ROUNDS)]).sd_most >= 0.01 for _ in range(1000)
    )
    assert 0.93 < covered / 1000 < 0.97


def test_rounds_are_added_until_the_interval_is_narrow_enough():
    noise = noise_of(rounds_with(0.05))
    rounds = noise.rounds_for(0.03)
    half = [math.expm1(stats.t.ppf(0.995, n - 1) * 0.05 / math.sqrt(n)) for n in (rounds - 1, rounds)]
    assert half[0] > 0.03 >= half[1]
    assert noise_of(rounds_with(1.0)).rounds_for(0.03) is None


def test_drift_switches_and_processor_time_are_over_all_processes():
    noise = noise_of(
        [a_round(step=0.002, involuntary=30, cpu=1.0), a_round(step=0.003, involuntary=10, wall=3.0, cpu=3.0)]
    )
    assert noise.drift == pytest.approx(0.5)
    assert noise.switches == pytest.approx(10.0)
    assert noise.cpu == pytest.approx(0.5)
    assert noise.step == pytest.approx(0.0025)


def test_one_process_has_no_spread():
    with pytest.raises(ValueError, match="two"):
        noise_of([a_round()])


# the findings


def test_on_a_quiet_machine_everything_is_as_it_should_be():
    assert {finding.severity for finding in findings_in(QUIET, STEADY)} == {Severity.OK}


@pytest.mark.parametrize(
    ("subject", "changes", "severity", "number", "todo"),
    [
        ("activity", {"activity": {"busy": 0.5, "load": [4.0, 3.0, 2.0], "users": [{"name": "chrome", "share": 0.9}]}},
         Severity.WARNING, "50 %", "close chrome (90 % of a processor)"),
        ("activity", {"activity": {"busy": 0.05, "load": None, "users": [{"name": "backup", "share": 0.4}]}},
         Severity.NOTE, "backup (40 %", "close backup"),
        ("threads", {"threads": 16}, Severity.WARNING, "16 threads on 8", "OMP_NUM_THREADS=8"),
        ("threads", {"usable": 1.5}, Severity.WARNING, "4 threads on 1.5", "OMP_NUM_THREADS=1 "),
        ("threads", {"threads": 8}, Severity.NOTE, "4 physical", "OMP_NUM_THREADS=4"),
        ("governor", {"governors": ["schedutil"]}, Severity.WARNING, "schedutil", "cpupower frequency-set -g performance"),
        ("governor", {"governors": ["powersave"]}, Severity.WARNING, "powersave", "cpupower"),
        ("governor", {"governors": ["powersave"], "frequency_driver": ["intel_pstate"]}, Severity.NOTE, "intel_pstate", "cpupower"),
        ("governor", {"governors": None, "virtual": True}, Severity.NOTE, "virtual machine", "host"),
        ("governor", {"governors": None, "container": True}, Severity.NOTE, "container", "host"),
        ("turbo", {"turbo": True, "frequency_driver": ["intel_pstate"]}, Severity.NOTE, "on", "intel_pstate/no_turbo"),
        ("turbo", {"turbo": True}, Severity.NOTE, "on", "cpufreq/boost"),
        ("memory", {"memory": {**QUIET["memory"], "available": GIB}}, Severity.WARNING, "1.0 GiB of 16.0", "smaller batches"),
        ("memory", {"memory": {**QUIET["memory"], "swap_used": 4 * GIB}}, Severity.NOTE, "4.0 GiB swapped", "swapoff"),
        ("disk", {"disk": {"where": "results/runs", "free": 1000}}, Severity.WARNING, "results/runs", "--out"),
        ("versions", {"versions": {"torch": "2.14.1", "timm": "absent"}}, Severity.PROBLEM, "timm", "pip install timm"),
        ("variables", {"variables": {"OMP_NUM_THREADS": "1"}}, Severity.NOTE, "OMP_NUM_THREADS=1", "unset"),
        ("variables", {"variables": {"CUDA_LAUNCH_BLOCKING": "1"}}, Severity.WARNING, "=1", "unset CUDA_LAUNCH_BLOCKING"),
        ("devices", {"telemetry": False}, Severity.NOTE, "nvidia-ml-py", "pip install nvidia-ml-py"),
        ("devices", {"devices": PROBE["devices"]}, Severity.NOTE, "no driver", "driver"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_should_be_is_told_with_its_number_and_what_to_do(subject, changes, severity, number, todo):
    (finding,) = [finding for finding in about(subject, changes) if finding.severity is not Severity.OK]
    assert finding.severity is severity
    assert number in finding.what
    assert finding.why
    assert todo in finding.do


@pytest.mark.parametrize(
    ("sd", "severity", "todo"),
    [(0.01, Severity.OK, ""), (0.05, Severity.WARNING, "--rounds"), (0.5, Severity.PROBLEM, "no number of rounds")],
)
def test_noise_is_weighed_by_the_smallest_effect_that_can_be_told(sd, severity, todo):
    (finding,) = about("noise", noise=noise_of(rounds_with(sd)))
    assert finding.severity is severity
    assert todo in finding.do


def test_drift_switches_and_a_hypervisor_that_takes_time_are_found():
    noise = noise_of([a_round(step=0.002, involuntary=200), a_round(step=0.003, involuntary=200)], steal=0.05)
    (drift,), (switches,), (hypervisor,) = (about(name, noise=noise) for name in ("drift", "switches", "hypervisor"))
    assert (drift.severity, switches.severity, hypervisor.severity) == (
        Severity.NOTE, Severity.WARNING, Severity.WARNING,
    )  # fmt: skip
    assert "50 %" in drift.what
    assert "taskset -c 4-7" in switches.do
    assert "5 %" in hypervisor.what


def test_the_worst_comes_first():
    findings = findings_in({**QUIET, "versions": {"timm": "absent"}, "turbo": True}, STEADY)
    assert [finding.severity for finding in findings[:3]] == [Severity.PROBLEM, Severity.NOTE, Severity.OK]


# the examination


class Scripted:
    """An executor whose processes answer at once."""

    def __init__(self, sd=0.001, broken=False):
        self.rounds, self.broken, self.asked = iter(rounds_with(sd)), broken, []

    def probe(self, names):
        if self.broken:
            raise HarnessError("a worker process cannot start: no torch", remedy="see whether torch works")
        return PROBE

    def noise(self, seconds, device="cpu"):
        self.asked.append((device, seconds))
        return next(self.rounds)


def test_an_examination_measures_in_several_processes_and_tells_what_it_found(tmp_path):
    (tmp_path / "sys/devices/system/cpu/cpufreq/policy0").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/cpufreq/policy0/scaling_governor").write_text("ondemand\n")
    (tmp_path / ".dockerenv").touch()
    executor = Scripted(sd=0.02)
    report = examine(20.0, executor, Console(quiet=True), root=tmp_path)
    assert len(executor.asked) == report.noise.rounds == ROUNDS
    assert {device for device, _ in executor.asked} == {"cpu"}
    assert 10 <= sum(seconds for _, seconds in executor.asked) <= 14
    assert report.accelerators == {}
    assert report.facts["governors"] == ["ondemand"]
    assert report.facts["container"] is True
    text = doctor_text(report)
    assert "device cuda" in text
    assert "absent: no cuda device can be used: no driver" in text
    assert "try: sudo cpupower frequency-set -g performance" in text
    value = json.loads(doctor_json(report))
    assert value["noise"]["sd"] == pytest.approx(0.02)
    assert value["findings"][0]["severity"] in ("problem", "warning")
    assert {"severity", "about", "what", "why", "do"} == set(value["findings"][0])


def test_an_accelerator_is_examined_as_long_as_the_processor(monkeypatch, tmp_path):
    now = {"sm_clock": 1_980_000_000, "temperature": 33, "power": 71.2, "throttle": ["idle"], "busy": 0.0}
    card = {"absent": None, "facts": {"model": "Some GPU", "memory_bytes": 80 * GIB}, "now": now}
    monkeypatch.setitem(PROBE["devices"], "cuda", card)
    executor = Scripted()
    executor.rounds = iter(rounds_with(0.001) + rounds_with(0.04))
    report = examine(20.0, executor, Console(quiet=True), root=tmp_path)
    assert [device for device, _ in executor.asked] == ["cpu"] * ROUNDS + ["cuda"] * ROUNDS
    assert report.noise.sd == pytest.approx(0.001)
    assert report.accelerators["cuda"].sd == pytest.approx(0.04)
    text = doctor_text(report)
    assert "Some GPU, 80.0 GiB, 1980 MHz, 33 °C, 71 W, 0 % busy" in text
    assert "noise on cuda" in text
    (said,) = [finding for finding in report.findings if "on cuda an effect of 4.2 %" in finding.what]
    assert said.severity is Severity.WARNING
    assert json.loads(doctor_json(report))["accelerators"]["cuda"]["sd"] == pytest.approx(0.04)


def test_an_accelerator_on_which_nothing_runs_is_a_problem_and_the_rest_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(PROBE["devices"], "cuda", {"absent": None, "facts": {"model": "Some GPU"}, "now": {}})

    class Full(Scripted):
        def noise(self, seconds, device="cpu"):
            if device == "cuda":
                raise HarnessError("a worker cannot start: it exited with 1\nTraceback\nout of memory", remedy="look")
            return super().noise(seconds, device)

    report = examine(20.0, Full(), Console(quiet=True), root=tmp_path)
    assert report.accelerators == {}
    assert report.findings[0].severity is Severity.PROBLEM
    assert report.findings[0].what.endswith("nothing can be measured on it: out of memory")
    assert report.noise.rounds == ROUNDS


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"busy": 0.4}, "cuda was 40 % busy"),
        ({"suspicious": "the card slowed down: hardware thermal slowdown"}, "cuda: the card slowed down: hardware"),
        ({"busy": 0.01, "throttle": ["software power cap"]}, None),
    ],
)
def test_a_card_that_others_use_or_that_is_hot_is_a_warning(now, says):
    devices = {**QUIET["devices"], "cuda": {"absent": None, "facts": {"model": "Some GPU"}, "now": now}}
    found = about("card", devices=devices)
    assert [finding.severity for finding in found] == [Severity.WARNING] * (says is not None)
    assert all(says in finding.what and finding.do for finding in found)


def test_without_a_worker_nothing_can_be_measured_and_the_error_says_what_to_do():
    with pytest.raises(HarnessError, match="cannot start"):
        examine(1.0, Scripted(broken=True), Console(quiet=True))


def test_a_quota_counts_as_fewer_processors(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpu\n")
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("50000 100000\n")
    assert gather(PROBE, QUIET["activity"], tmp_path)["usable"] == 0.5


@pytest.fixture
def stranger():
    """A process that keeps a processor busy and is no child of this one: its parent has left it."""
    spin = f"{sys.executable} -c 'secret = \"hush\"\nwhile True: pass' >/dev/null 2>&1 & echo $!"
    pid = int(subprocess.run(["sh", "-c", spin], capture_output=True, text=True, check=True).stdout)
    yield psutil.Process(pid)
    psutil.Process(pid).kill()


def test_whoever_uses_the_processor_is_named_but_not_what_it_was_called_with(stranger):
    found = activity(0.5)
    assert stranger.name() in [user["name"] for user in found["users"]]
    assert "hush" not in json.dumps(found)
    assert found["busy"] > 0.1
    shares = [user["share"] for user in found["users"]]
    assert shares == sorted(shares, reverse=True)
    assert len(shares) <= 3


def test_the_harness_own_processes_are_not_strangers():
    child = subprocess.Popen(["yes"], stdout=subprocess.DEVNULL)
    try:
        assert "yes" not in [user["name"] for user in activity(0.2)["users"]]
    finally:
        child.kill()
        child.wait()


def test_shares_of_the_processors_time():
    passed = Shares(60.0, 5.0, 200.0) - Shares(10.0, 1.0, 100.0)
    assert passed.busy == pytest.approx(0.5)
    assert passed.steal == pytest.approx(0.04)
    assert (Shares(2.0, None, 2.0) - Shares(1.0, None, 1.0)).steal is None
