"""How `harness run` ended, in print: what could not be measured at all, and the last line. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.execution import Outcome


ELSEWHERE = "harness run suites/cpu.yaml, which needs no accelerator; 'harness plan' shows this suite here"


def nothing_measured(outcome: Outcome) -> str:
    """A line for each device that is not there, and what runs without one."""
    lines = [f"skipped: {device}: {reason}" for device, reason in outcome.absent.items()]
    if lines:
        lines.append(
            "  try: harness run suites/cpu.yaml, which needs no accelerator; 'harness plan' shows this suite here"
        )
    return "".join(f"{line}\n" for line in lines)


def last_line(outcome: Outcome) -> str:
    """The run's directory, and how many cells were measured, reused, failed, skipped."""
    run, tally = outcome.run, outcome.run.tally()
    left = f", {tally['open']} left" if tally["open"] else ""
    return (
        f"{run.path}: {tally['measured']} cells measured ({outcome.reused} reused), {tally['failed']} failed, "
        f"{tally['unsupported']} unsupported, {tally['skipped']} skipped{left}"
    )
