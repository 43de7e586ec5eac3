"""What accelerators say of themselves, and what to make of it."""

from __future__ import annotations

from collections.abc import Iterator

from harness.doctor.finding import Finding, Severity, percent
from harness.records import Json

CARD_USED = 0.05
"""Of the last moments: an idle card says 0, one that only shows a desktop about a hundredth."""


def cards(facts: Json) -> Iterator[Finding]:
    """One that cannot be used after all, that others use, or that is too hot to be trusted."""
    for name, device in facts["devices"].items():
        now = device.get("now") or {}
        if "broken" in device:
            yield Finding(
                Severity.PROBLEM, "card", f"{name} is there, but nothing can be measured on it: {device['broken']}",
                "cells on it fail", f"see what it lacks: python -c \"import torch; torch.ones(1, device='{name}')\"",
            )  # fmt: skip
        if now.get("busy", 0.0) >= CARD_USED:
            yield Finding(
                Severity.WARNING, "card", f"{name} was {percent(now['busy'])} busy before anything was measured",
                "kernels of two processes take turns on a card: times grow and scatter",
                "nvidia-smi shows who uses it; end that, or measure on another card (cuda:1)",
            )  # fmt: skip
        if "suspicious" in now:
            yield Finding(
                Severity.WARNING, "card", f"{name}: {now['suspicious']}",
                "times are those of a hot or badly fed card, and change as it cools",
                "let it cool, see its fans and its power supply; nvidia-smi -q -d PERFORMANCE",
            )  # fmt: skip
