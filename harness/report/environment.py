"""What the figures were measured on, in a line or in full. Prints what is there and asks nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

HARDWARE = ("cpu", "device", "model", "gpu", "accelerator", "processor", "name")
SOFTWARE = ("torch", "timm")


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
    names = [name for name, value in facts.items() if _last(name) in HARDWARE and not _is_number(value)]
    models = list(dict.fromkeys(facts[name] for name in names))
    # a bare "cpu" says nothing beside the processor's name
    parts = [model for model in models if len(model) > 4] or models
    parts += [f"{facts[name]} threads" for name in facts if _last(name) in ("threads", "torch_threads")][:1]
    parts += [f"{_last(name)} {facts[name]}" for word in SOFTWARE for name in facts if _last(name) == word][:2]
    return ", ".join(parts) or "hardware not recorded"


def _last(name: str) -> str:
    return name.lower().split()[-1]


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
