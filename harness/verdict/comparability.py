"""Whether a time of another day says anything here: two fingerprints, seen from one device.

A time belongs to a machine. Another processor or card, or another number of threads, makes another question of it, and
no statistics can tell the two apart: refused. The same machine with a newer driver or torch still answers the
question, but what changed may be theirs and not the code's: advice that fails nothing. Counts need none of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from harness import catalog
from harness.records import Fingerprint, Json

REQUIRED = ("model", "threads", "driver")
"""What both sides must know of a device whose kind is not known here; the others declare it (`identity`)."""

IDENTITY = ("model", "capability", "threads")
"""What makes it another machine when both sides know it and differ."""

SHARED = "threads"
"""Of these fields the one that is not a device's own."""


class Level(StrEnum):
    """What may be done with two times, weakest objection first."""

    SAME = "same"
    COMPARABLE = "comparable"
    REFUSED = "refused"


@dataclass(frozen=True)
class Comparability:
    """`reasons` name each field with what it was then and is now; `remedy` says what to do about a refusal."""

    level: Level = Level.SAME
    reasons: tuple[str, ...] = ()
    remedy: str = ""

    def note(self, device: str) -> str:
        """What it means for the times on that device, in one sentence; empty where nothing stands in the way."""
        reasons = "; ".join(self.reasons)
        if self.level is Level.REFUSED:
            return f"times on {device} are not compared ({reasons}): {self.remedy}"
        return f"times on {device} are advice and fail nothing ({reasons})" if self.level is Level.COMPARABLE else ""


def comparability_of(before: Fingerprint, now: Fingerprint, device: str) -> Comparability:
    """How times on one device (as the device axis names it: ``cpu``, ``cuda:1``) of two runs stand to each other.

    REFUSED: model, capability or threads differ, or one that must be known is not. COMPARABLE: only driver, memory,
    system or versions differ. Other devices of the two machines do not matter.
    """
    then, today = _facts(before, device), _facts(now, device)
    required = _named(_required(device), device)
    unknown = [name for name in required if name not in then or name not in today]
    known = then.keys() & today.keys()
    another = [name for name in _named(IDENTITY, device) if name in known and then[name] != today[name]]
    if unknown or another:
        remedy = _remedy([name for name in unknown if name not in today])
        return Comparability(Level.REFUSED, _reasons([*unknown, *another], then, today), remedy)
    differing = _changed(then, today)
    return Comparability(Level.COMPARABLE if differing else Level.SAME, _reasons(differing, then, today))


def worst(standings: list[Comparability]) -> Comparability:
    """The one with the strongest objection: of a ratio whose two sides were measured on two devices."""
    return max(standings, key=lambda standing: list(Level).index(standing.level))


def differences(before: Fingerprint, now: Fingerprint) -> tuple[str, ...]:
    """Every field that is not the same, in words, apart from the source: that is what is being checked."""
    devices = sorted(name for side in (before, now) for name in side.machine if _is_device(side.machine[name]))
    found: list[str] = []
    for device in devices or [""]:
        then, today = _facts(before, device), _facts(now, device)
        found += _reasons(_changed(then, today), then, today)
    return tuple(dict.fromkeys(found))


def _facts(fingerprint: Fingerprint, device: str) -> dict[str, Json]:
    """What is known that bears on one device, by the name it has in print; None and empty are not known."""
    machine = fingerprint.machine
    own = machine.get(device)
    facts = {**fingerprint.versions}
    facts |= {name: value for name, value in machine.items() if name != device and not _is_device(value)}
    if isinstance(own, Mapping):
        facts |= {_named([name], device)[0]: value for name, value in own.items()}
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _is_device(value: Json) -> bool:
    return isinstance(value, Mapping)


def _required(device: str) -> Iterable[str]:
    declared = catalog.devices().get(device.partition(":")[0])
    required: Iterable[str] = declared["identity"] if declared else REQUIRED
    return required


def _named(names: Iterable[str], device: str) -> list[str]:
    return [name if name == SHARED else f"{device} {name}" for name in names]


def _changed(then: Mapping[str, Json], now: Mapping[str, Json]) -> list[str]:
    return [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]


def _reasons(names: Iterable[str], then: Mapping[str, Json], now: Mapping[str, Json]) -> tuple[str, ...]:
    return tuple(f"{name}: {then.get(name, 'unknown')} then, {now.get(name, 'unknown')} now" for name in names)


def _remedy(unknown_now: list[str]) -> str:
    side_by_side = "compare both versions side by side here: harness ab"
    if not unknown_now:
        return f"make a baseline on this machine (harness baseline RUN --out FILE), or {side_by_side}"
    tool = " (nvidia-smi must be found)" if any("driver" in name for name in unknown_now) else ""
    return f"run where {', '.join(unknown_now)} can be read{tool}, or {side_by_side}"
