"""An examination in print."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from harness.doctor.findings import Finding, Severity, gib, percent
from harness.doctor.noise import JUDGED_ROUNDS, Noise
from harness.records import Json


def text_of(facts: Json, noise: Noise, findings: Sequence[Finding]) -> str:
    """Facts and noise as two tables, then every finding with why it matters and what to do."""
    parts = [
        tabulate(_fact_rows(facts), tablefmt="plain", disable_numparse=True),
        tabulate(_noise_rows(noise), tablefmt="plain", disable_numparse=True),
        "\n".join(line for finding in findings for line in _lines(finding)),
        _summary(findings),
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
    return ", ".join([*known, *([gib(facts["memory_bytes"])] if facts.get("memory_bytes") else [])])


def _noise_rows(noise: Noise) -> list[list[str]]:
    stolen = "unknown" if noise.steal is None else percent(noise.steal)
    return [
        ["noise of a round's ratio", f"sd {percent(noise.sd)} ({noise.rounds} processes, {noise.passes} passes)"],
        [f"told in {JUDGED_ROUNDS} rounds", f"effects of {percent(noise.resolves)} (99 %)"],
        ["slowest to fastest process", f"+{percent(noise.drift)} (a step of {1e3 * noise.step:.2f} ms)"],
        ["involuntary switches", f"{noise.switches:.1f} a second"],
        ["processor time of a thread", f"{percent(noise.cpu)} of the time; stolen {stolen}"],
    ]


def json_of(facts: Json, noise: Noise, findings: Sequence[Finding]) -> str:
    """Sizes in bytes, times in seconds, shares as fractions; what is unknown is null."""
    measured = {name: None if _broken(value) else value for name, value in asdict(noise).items()}
    value = {"facts": facts, "noise": measured, "findings": [asdict(finding) for finding in findings]}
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def _broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
