"""What the figures were measured on, in a line or in full. Prints what is there and asks nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

HARDWARE = ("model", "cpu", "gpu", "processor", "device", "name")
"""Names under which a device's model is looked for; the first that is there is believed."""


def flat(environment: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as ``("cpu model", "...")`` pairs, empty ones left out."""
    for key, value in environment.items():
        name = f"{above} {key}".strip()
        if isinstance(value, Mapping):
            yield from flat(value, name)
        elif value is not None and value not in ("", [], ()):
            yield name, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def hardware(environment: Mapping[str, Any]) -> str:
    """The device, the threads and the torch version in one line, as far as they are known."""
    facts = dict(flat(environment))
    parts: list[str] = []
    for word in HARDWARE:
        if parts := list(dict.fromkeys(_named(facts, word))):
            break
    for word, text in (("cores", "{} cores"), ("threads", "{} threads"), ("torch", "torch {}"), ("timm", "timm {}")):
        parts += [text.format(value) for value in _named(facts, word)[:1]]
    return ", ".join(parts) or "hardware not recorded"


def _named(facts: Mapping[str, str], word: str) -> list[str]:
    """The values of all facts that are called so, however deep they are nested."""
    return [value for name, value in facts.items() if name.lower().split()[-1] == word]
