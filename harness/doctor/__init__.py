"""What this machine is, how steady its clock is right now, and what to do about it: ``harness doctor``.

`examine` gathers facts, measures the noise with the harness's own machinery (fresh workers, steps taking turns) and
weighs both. torch stays in the workers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console

from harness import catalog
from harness.doctor.facts import Shares, activity, gather
from harness.doctor.finding import Finding, Severity
from harness.doctor.findings import findings_in
from harness.doctor.steadiness import ROUNDS, Noise, noise_of
from harness.errors import HarnessError
from harness.execution.local import LocalExecutor
from harness.records import Json
from harness.verdict.statistics import MINIMUM_ROUNDS

__all__ = ["Finding", "Noise", "Report", "Severity", "examine"]

SHARE = 0.6
"""Of the time, for measuring; the rest goes into starting workers, torch's import above all."""

LONGEST = 1.3
"""Times as long as meant: processes start slowly on a machine that is busy, and fewer of them tell as much there."""


class Prober(Protocol):
    """The part of an executor that is needed here."""

    def probe(self, names: list[str]) -> Json: ...

    def noise(self, seconds: float, device: str = "cpu") -> Json: ...


@dataclass(frozen=True)
class Report:
    """Facts (plain JSON), what the clock does, and what to make of both, the worst first.

    `noise` is the processor's, `accelerators` that of every other device that can be used, by its name.
    """

    facts: Json
    noise: Noise
    findings: tuple[Finding, ...]
    accelerators: Mapping[str, Noise] = field(default_factory=dict)


def examine(
    seconds: float = 20.0, executor: Prober | None = None, console: Console | None = None, root: Path = Path("/")
) -> Report:
    """Look at this machine for about `seconds`, and as long at each of its accelerators.

    HarnessError when no worker can start: then nothing can be measured.
    `root` is where the kernel's files are looked for.
    """
    console = console or Console(stderr=True)
    with ExitStack() as stack:
        at_work = executor or stack.enter_context(LocalExecutor())
        busy = activity()  # first: everything after it keeps the machine busy itself
        facts = gather(at_work.probe(list(catalog.devices())), busy, root)
        present = [name for name, device in facts["devices"].items() if not device["absent"]]
        rounds, shares = _measured(at_work, "cpu", SHARE * seconds, console)
        others: dict[str, Noise] = {}
        for name in (name for name in present if not catalog.device(name)["host"]):
            try:
                others[name] = noise_of(_measured(at_work, name, SHARE * seconds, console)[0])
            except HarnessError as problem:  # a card that is full, say: what is known of the rest is told all the same
                facts["devices"][name]["broken"] = problem.problem.splitlines()[-1]
    noise = noise_of(rounds, shares.steal)
    return Report(facts, noise, tuple(findings_in(facts, noise, others)), others)


def _measured(executor: Prober, device: str, seconds: float, console: Console) -> tuple[Sequence[Json], Shares]:
    """The rounds, each a fresh process, and who had the processors meanwhile."""
    before, started = Shares.now(), time.monotonic()
    found: list[Json] = []
    with console.status(f"measuring how steady {device} is") as status:
        for number in range(ROUNDS):
            if number >= MINIMUM_ROUNDS and time.monotonic() - started > LONGEST * seconds:
                break
            status.update(f"measuring how steady {device} is: process {number + 1} of {ROUNDS}")
            found.append(executor.noise(seconds / ROUNDS, device))
    return found, Shares.now() - before
