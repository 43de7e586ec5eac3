"""What the facts and the noise mean for timing, and what to do about it. Pure; every threshold has its reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from harness import catalog
from harness.doctor.cards import cards
from harness.doctor.finding import Finding, Severity, percent
from harness.doctor.steadiness import JUDGED_ROUNDS, Noise
from harness.machine.fingerprint import BUSY_PERCENT
from harness.records import Json
from harness.units import gib

FINE_EFFECT = 0.03
"""The default threshold of times: a machine that cannot tell 3 % in ten rounds leaves `ab` and `check` undecided."""

COARSE_EFFECT = 0.10
"""Training forms differ by tens of per cent; where 10 % drowns, even their order is doubtful."""

MOST_DRIFT = 0.10
"""Slowest against fastest process: a laptop's turbo and the layout of memory alone make 5 %."""

MOST_SWITCHES = 50.0
"""Involuntary ones per second: kernel threads and timers make about ten; a rival on the same processor takes a time
slice of 3 to 4 ms by turns, which makes a hundred and more."""

MOST_STEAL = 0.01
"""A share of 1 % is what the default precision asks of a whole measurement."""

ONE_USER = 0.10
"""Of one processor: a tenth of one of two is 5 % of what a step of two threads has, beyond the threshold of 3 %."""

LEAST_MEMORY = 2 * 2**30
"""Bytes available: a worker has 0.7 GiB with torch alone, ResNet-18 at batch 8 trains in 0.3 GiB more."""

LEAST_DISK = 2**30
"""Bytes: a run's journal and report have some MiB; a full disk ends a run."""

SWAPPED = 0.10
"""Of the memory: parked leftovers of idle programs are less; beyond it the machine has been short of memory."""

FIXED = ("performance",)
DRIVERS_THAT_ADAPT = ("intel_pstate", "amd-pstate-epp")
"""Whose `powersave` raises the clock under load like any other governor's; elsewhere it stays at the lowest."""


def findings_in(facts: Json, noise: Noise, accelerators: Mapping[str, Noise] | None = None) -> list[Finding]:
    """Every finding, the worst first; `accelerators`: the noise of each device but the processor."""
    found = [
        *_noise(facts, noise), *_noise_elsewhere(accelerators or {}), *cards(facts), *_drift(noise),
        *_switches(facts, noise), *_steal(noise), *_activity(facts), *_threads(facts), *_frequency(facts),
        *_turbo(facts), *_memory(facts), *_disk(facts), *_devices(facts), *_versions(facts), *_variables(facts),
    ]  # fmt: skip
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _noise(facts: Json, noise: Noise) -> Iterator[Finding]:
    what = (
        f"in {JUDGED_ROUNDS} rounds an effect of {percent(noise.resolves)} can be told (up to "
        f"{percent(noise.resolves_most)}: {noise.rounds} processes were seen); sd of a round {percent(noise.sd)}"
    )
    rounds = noise.rounds_for(FINE_EFFECT)
    more = f"--rounds {rounds} would tell {percent(FINE_EFFECT)}" if rounds else "no number of rounds makes up for it"
    yield _weighed(what, noise, f"{_quieten(facts)}; {more}")


def _noise_elsewhere(accelerators: Mapping[str, Noise]) -> Iterator[Finding]:
    for name, noise in accelerators.items():
        what = f"on {name} an effect of {percent(noise.resolves)} can be told in {JUDGED_ROUNDS} rounds"
        yield _weighed(what, noise, f"let nothing else use {name} (nvidia-smi shows who does)")


def _weighed(what: str, noise: Noise, do: str) -> Finding:
    """What noise says, by the smallest effect that can be told."""
    if noise.resolves <= FINE_EFFECT:
        return Finding(Severity.OK, "noise", what)
    severity = Severity.WARNING if noise.resolves <= COARSE_EFFECT else Severity.PROBLEM
    why = f"differences below that stay INCONCLUSIVE; the default threshold is {percent(FINE_EFFECT)}"
    return Finding(severity, "noise", what, why, do)


def _quieten(facts: Json) -> str:
    names = _names(facts)
    return f"close {names}" if names else "let nothing else run on this machine"


def _names(facts: Json) -> str:
    users = [user for user in facts["activity"]["users"] if user["share"] >= ONE_USER]
    return ", ".join(f"{user['name']} ({percent(user['share'])} of a processor)" for user in users)


def _drift(noise: Noise) -> Iterator[Finding]:
    what = f"the slowest of {noise.rounds} processes took {percent(noise.drift)} longer than the fastest"
    if noise.drift <= MOST_DRIFT:
        yield Finding(Severity.OK, "drift", what)
        return
    why = "absolute times of two rounds or two days differ by as much; ratios taken side by side do not"
    yield Finding(Severity.NOTE, "drift", what, why, "trust ratios, compare versions with 'harness ab', not by times")


def _switches(facts: Json, noise: Noise) -> Iterator[Finding]:
    what = f"{noise.switches:.0f} involuntary context switches a second; a thread had {percent(noise.cpu)} of its time"
    if noise.switches <= MOST_SWITCHES:
        yield Finding(Severity.OK, "switches", what)
        return
    spare = facts["logical"] - facts["threads"]
    pin = f", or keep to processors of your own: taskset -c {spare}-{facts['logical'] - 1} harness run SUITE"
    yield Finding(
        Severity.WARNING, "switches", what, "something else was given the processor in the middle of steps",
        _quieten(facts) + (pin if spare > 0 else ""),
    )  # fmt: skip


def _steal(noise: Noise) -> Iterator[Finding]:
    if noise.steal is None or noise.steal <= MOST_STEAL:
        return
    yield Finding(
        Severity.WARNING, "hypervisor", f"it gave {percent(noise.steal)} of the processors' time to other machines",
        "time that passes while a step stands still is counted as the step's",
        "use a dedicated machine, or one with processors of its own (no shared or burstable type)",
    )  # fmt: skip


def _activity(facts: Json) -> Iterator[Finding]:
    activity = facts["activity"]
    names = _names(facts)
    load = "" if activity["load"] is None else f", load {activity['load'][0]:.2f}"
    what = f"{percent(activity['busy'])} busy before anything was measured{load}{f': {names}' if names else ''}"
    why = "whatever else runs takes processors, caches and memory bandwidth from the steps"
    if 100 * activity["busy"] >= BUSY_PERCENT:
        yield Finding(Severity.WARNING, "activity", what, why, _quieten(facts))
    elif names:
        yield Finding(Severity.NOTE, "activity", what, why, _quieten(facts))
    else:
        yield Finding(Severity.OK, "activity", what)


def _threads(facts: Json) -> Iterator[Finding]:
    threads, usable = facts["threads"], facts["usable"]
    what = f"torch uses {threads} threads on {usable:g} usable of {facts['logical']} processors"
    if threads > usable:
        fitting = max(1, math.floor(usable))
        yield Finding(
            Severity.WARNING, "threads", what,
            "threads that wait for a processor make every step as slow as the last of them (a quota stops them all)",
            f"OMP_NUM_THREADS={fitting} harness run SUITE, or the axis threads: [{fitting}]",
        )  # fmt: skip
    elif facts["smt"] and facts["physical"] and threads > facts["physical"]:
        cores = facts["physical"]
        yield Finding(
            Severity.NOTE, "threads", f"{what}, {cores} physical cores",
            "two threads on one core share its arithmetic, by turns that change from step to step",
            f"OMP_NUM_THREADS={cores} harness run SUITE",
        )  # fmt: skip
    else:
        yield Finding(Severity.OK, "threads", what)


def _frequency(facts: Json) -> Iterator[Finding]:
    governors = facts["governors"]
    if governors is None:
        where = "container" if facts["container"] else "virtual machine" if facts["virtual"] else "system"
        yield Finding(
            Severity.NOTE, "governor", f"unknown: this {where} shows no frequency governor",
            "the clock may change while something is measured and nothing here can see it; the noise tells its effect",
            "look on the host (cpupower frequency-info), or trust ratios only",
        )  # fmt: skip
        return
    what = f"{', '.join(governors)} (driver {', '.join(facts['frequency_driver'] or ['unknown'])})"
    if all(governor in FIXED for governor in governors):
        yield Finding(Severity.OK, "governor", what)
        return
    adapts = all(driver in DRIVERS_THAT_ADAPT for driver in facts["frequency_driver"] or [""])
    yield Finding(
        Severity.NOTE if adapts and governors == ["powersave"] else Severity.WARNING, "governor", what,
        "the clock follows the load: short steps after a pause are slower than the same steps in a row",
        "sudo cpupower frequency-set -g performance",
    )  # fmt: skip


def _turbo(facts: Json) -> Iterator[Finding]:
    if facts["turbo"] is None:
        return  # the governor's finding says that the clock cannot be seen
    if not facts["turbo"]:
        yield Finding(Severity.OK, "turbo", "off")
        return
    intel = any(driver.startswith("intel") for driver in facts["frequency_driver"] or [])
    switch = "1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo"
    other = "0 | sudo tee /sys/devices/system/cpu/cpufreq/boost"
    yield Finding(
        Severity.NOTE, "turbo", "on",
        "the clock falls as the processor gets warm; variants that take turns fall alike, absolute times do not",
        f"for absolute times: echo {switch if intel else other}",
    )  # fmt: skip


def _memory(facts: Json) -> Iterator[Finding]:
    memory = facts["memory"]
    what = f"{gib(memory['available'])} of {gib(memory['total'])} available, {gib(memory['swap_used'])} swapped out"
    if memory["available"] < LEAST_MEMORY:
        why = "steps that wait for the disk are timed with it, and workers are killed"
        yield Finding(Severity.WARNING, "memory", what, why, f"{_quieten(facts)}, or use smaller batches")
    elif memory["swap_used"] > SWAPPED * memory["total"]:
        why = "pages that come back from the disk in the middle of a step are timed with it"
        yield Finding(Severity.NOTE, "memory", what, why, "sudo swapoff -a && sudo swapon -a, when there is room")
    else:
        yield Finding(Severity.OK, "memory", what)


def _disk(facts: Json) -> Iterator[Finding]:
    disk = facts["disk"]
    what = f"{gib(disk['free'])} free for {disk['where']}"
    if disk["free"] < LEAST_DISK:
        why = "a run ends when its journal cannot be written"
        yield Finding(Severity.WARNING, "disk", what, why, "make room, or name another disk with --out")
    else:
        yield Finding(Severity.OK, "disk", what)


def _devices(facts: Json) -> Iterator[Finding]:
    present = [name for name, device in facts["devices"].items() if not device["absent"]]
    yield Finding(Severity.OK, "devices", f"{', '.join(present) or 'none'} can be used")
    if present and all(catalog.device(name)["host"] for name in present):
        reasons = [device["absent"] for device in facts["devices"].values() if device["absent"]]
        yield Finding(
            Severity.NOTE, "devices", reasons[0] if reasons else "no accelerator was asked for",
            "cells on an accelerator are skipped", "on a machine with one: a torch built for it, and its driver",
        )  # fmt: skip
    packages = [package for name in present if (package := catalog.device(name)["telemetry_package"])]
    if packages and not facts["telemetry"]:
        yield Finding(
            Severity.NOTE, "devices", f"{packages[0]} is not installed",
            "without it the card's clocks, temperature and throttling are not recorded beside the times",
            f"pip install {packages[0]}",
        )  # fmt: skip


def _versions(facts: Json) -> Iterator[Finding]:
    missing = [name for name, version in facts["versions"].items() if version == "absent"]
    if missing:
        why = "what needs it cannot be measured"
        yield Finding(Severity.PROBLEM, "versions", f"not installed: {', '.join(missing)}", why,
                      f"pip install {' '.join(missing)}")  # fmt: skip


def _variables(facts: Json) -> Iterator[Finding]:
    variables = facts["variables"]
    if variables.get("CUDA_LAUNCH_BLOCKING", "0") != "0":
        yield Finding(
            Severity.WARNING, "variables", f"CUDA_LAUNCH_BLOCKING={variables['CUDA_LAUNCH_BLOCKING']}",
            "every launch waits for the card: times are those of a debugger", "unset CUDA_LAUNCH_BLOCKING",
        )  # fmt: skip
    if "OMP_NUM_THREADS" in variables:
        yield Finding(
            Severity.NOTE, "variables", f"OMP_NUM_THREADS={variables['OMP_NUM_THREADS']}",
            "it decides torch's threads, and times with other numbers of threads are not compared",
            "unset OMP_NUM_THREADS, or write the axis threads into the suite",
        )  # fmt: skip
