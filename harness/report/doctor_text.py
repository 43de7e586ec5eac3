"""An examination in print."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from harness.doctor import Report
from harness.doctor.finding import Finding, Severity, percent
from harness.doctor.steadiness import JUDGED_ROUNDS, Noise
from harness.records import Json
from harness.units import gib


def doctor_text(report: Report) -> str:
    """For people: facts and noise as two tables, then every finding with why it matters and what to do."""
    others = [row for name, one in report.accelerators.items() for row in _accelerator_rows(name, one)]
    parts = [
        tabulate(_fact_rows(report.facts), tablefmt="plain", disable_numparse=True),
        tabulate([*_noise_rows(report.noise), *others], tablefmt="plain", disable_numparse=True),
        "\n".join(line for finding in report.findings for line in _lines(finding)),
        _summary(report.findings),
    ]
    return "\n\n".join(parts)


def _lines(finding: Finding) -> list[str]:
    lines = [f"{finding.severity:9}{finding.about}: {finding.what}"]
    lines += [f"{'':9}{finding.why}"] if finding.why else []
    return lines + ([f"{'':9}try: {finding.do}"] if finding.do else [])


def _summary(findings: Sequence[Finding]) -> str:
    counts = {severity: sum(finding.severity is severity for finding in findings) for severity in Severity}
    return ", ".join(f"{number} {severity}" for severity, number in counts.items() if number)


def _fact_rows(facts: Json) -> list[list[str]]:
    memory, activity = facts["memory"], facts["activity"]
    users = ", ".join(f"{user['name']} {percent(user['share'])}" for user in activity["users"])
    load = "unknown" if activity["load"] is None else " ".join(f"{one:.2f}" for one in activity["load"])
    kept = ("affinity", "cpu_quota", "smt", "governors", "frequency_driver", "turbo", "virtual", "hypervisor")
    return [
        ["processor", facts["processor"] or "unknown"],
        ["cores", f"{facts['physical'] or 'unknown'} physical, {facts['logical']} logical, {facts['usable']:g} usable"],
        ["threads", f"{facts['threads']} (torch's)"],
        *([name.replace("_", " "), _plain(facts[name])] for name in kept),
        ["container", _plain(facts["container"])],
        ["load", f"{load}; {percent(activity['busy'])} busy{f': {users}' if users else ''}"],
        ["memory", f"{gib(memory['available'])} of {gib(memory['total'])}; swap {gib(memory['swap_used'])} used"],
        ["disk", f"{gib(facts['disk']['free'])} free for {facts['disk']['where']}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items())],
        *([f"device {name}", _device(device)] for name, device in facts["devices"].items()),
        ["variables", ", ".join(f"{name}={value}" for name, value in facts["variables"].items()) or "none set"],
    ]


def _plain(value: Json) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _device(device: Json) -> str:
    if device["absent"]:
        return f"absent: {device['absent']}"
    facts = device["facts"]
    names = ("model", "capability", "driver", "runtime")
    known = [str(facts[name]) for name in names if facts.get(name)]
    memory = [gib(facts["memory_bytes"])] if facts.get("memory_bytes") else []
    return ", ".join([*known, *memory, *_now(device.get("now", {}))])


def _now(state: Json) -> list[str]:
    """What a card says of itself at this moment, as far as it says anything."""
    units = {"sm_clock": (1e-6, "MHz"), "temperature": (1.0, "°C"), "power": (1.0, "W"), "busy": (100.0, "% busy")}
    known = [f"{scale * state[name]:.0f} {unit}" for name, (scale, unit) in units.items() if name in state]
    reasons = [reason for reason in state.get("throttle", ()) if reason != "idle"]
    return known + ([f"held back: {', '.join(reasons)}"] if reasons else [])


def _noise_rows(noise: Noise) -> list[list[str]]:
    stolen = "unknown" if noise.steal is None else percent(noise.steal)
    return [
        ["noise of a round's ratio", f"sd {percent(noise.sd)} ({noise.rounds} processes, {noise.passes} passes)"],
        [f"told in {JUDGED_ROUNDS} rounds", f"effects of {percent(noise.resolves)} (99 %)"],
        ["slowest to fastest process", f"+{percent(noise.drift)} (a step of {1e3 * noise.step:.2f} ms)"],
        ["involuntary switches", f"{noise.switches:.1f} a second"],
        ["processor time of a thread", f"{percent(noise.cpu)} of the time; stolen {stolen}"],
    ]


def _accelerator_rows(name: str, noise: Noise) -> list[list[str]]:
    return [
        [f"noise on {name}", f"sd {percent(noise.sd)} ({noise.rounds} processes, {noise.passes} passes)"],
        [f"told on {name}", f"effects of {percent(noise.resolves)} (99 %)"],
        [f"slowest on {name}", f"+{percent(noise.drift)} (a step of {1e3 * noise.step:.2f} ms)"],
    ]


def doctor_json(report: Report) -> str:
    """For programs: the same; sizes in bytes, times in seconds, shares as fractions; what is unknown is null."""
    value = {
        "facts": report.facts,
        "noise": _plain_noise(report.noise),
        "accelerators": {name: _plain_noise(one) for name, one in report.accelerators.items()},
        "findings": [asdict(finding) for finding in report.findings],
    }
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _plain_noise(noise: Noise) -> Json:
    return {name: None if _broken(value) else value for name, value in asdict(noise).items()}


def _broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
