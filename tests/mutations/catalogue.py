"""Planted faults: small mistakes that a programmer could make, each in one place, as data in faults/*.yaml.

An entry says `file` (from the repository's root), `old` (its exact text, in that file once), `new`, `why` (what kind of
mistake it is) and `tests` (test files or node ids that are expected to notice, the fastest first). The file's name is
the area.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]

FAULTS = Path(__file__).parent / "faults"

AREAS = (
    "algebra", "parts", "folding", "swap", "tracker", "turns", "session", "journal", "verdict", "report", "suite",
)  # fmt: skip


class DoesNotApply(Exception):
    """The catalogue is behind the code (or a fault is no fault): put the entry right."""


@dataclass(frozen=True)
class Fault:
    """One mistake, planted by replacing `old` with `new` in `file`."""

    id: str
    area: str
    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]

    @property
    def key(self) -> str:
        """Another one for every change of the entry."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]

    def planted(self, root: Path = ROOT) -> str:
        """The text of `file` with the mistake in it. DoesNotApply when `old` is not there exactly once."""
        path = root / self.file
        if not path.exists():
            raise DoesNotApply(f"{self.id} does not apply: there is no {self.file}")
        text = path.read_text(encoding="utf-8")
        count = text.count(self.old)
        if count != 1:
            raise DoesNotApply(f"{self.id} does not apply: its old text is in {self.file} {count} times, not once")
        if self.old == self.new:
            raise DoesNotApply(f"{self.id} does not apply: it changes nothing")
        return text.replace(self.old, self.new)

    def lacking(self, root: Path = ROOT) -> list[str]:
        """Which of `tests` do not exist (any more)."""
        return [test for test in self.tests if not _exists(test, root)]


def _exists(test: str, root: Path) -> bool:
    path, _, name = test.partition("::")
    if not (root / path).is_file():
        return False
    return not name or f"def {name.partition('[')[0]}(" in (root / path).read_text(encoding="utf-8")


def load(folder: Path = FAULTS) -> tuple[Fault, ...]:
    """All faults, in the order of `AREAS` and of their files."""
    return tuple(fault for area in AREAS for fault in _area(folder / f"{area}.yaml"))


def _area(path: Path) -> Iterable[Fault]:
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        yield Fault(area=path.stem, **{**entry, "tests": tuple(entry["tests"])})


def chosen(faults: Sequence[Fault], names: Sequence[str]) -> tuple[Fault, ...]:
    """Those whose id or area is named; all for no name. DoesNotApply for a name that is neither."""
    known = {fault.id for fault in faults} | set(AREAS)
    if strange := [name for name in names if name not in known]:
        raise DoesNotApply(f"there is no fault and no area {', '.join(strange)}")
    return tuple(fault for fault in faults if not names or fault.id in names or fault.area in names)
