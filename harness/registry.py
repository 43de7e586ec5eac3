"""Names and the things they stand for: strict about doubles, helpful about misses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from harness.errors import UnknownName

T = TypeVar("T")

FEW = 6
"""So many names are simply listed: the nearest spelling need not be the one that was meant."""


MOST = 8
"""So many of the names that begin with what was asked for are listed."""


def unknown(kind: str, name: object, known: Collection[str], where: str | None = None) -> UnknownName:
    """The error for a name that is not there: valid names that begin with it, else the nearest, or all of them."""
    longer = [item for item in known if name and item.startswith(str(name))][:MOST]
    near = longer or (get_close_matches(str(name), known, n=3, cutoff=0.6) if len(known) > FEW else [])
    names = near or sorted(known)[:12]
    more = "" if near or len(known) <= 12 else f" ... ({len(known)} in all)"
    return UnknownName(f"no {kind} is called {str(name)!r}", remedy=f"use {', '.join(names)}{more}", where=where)


class Registry(Generic[T]):
    """A named collection that modules add to when they are imported."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        def add(item: T) -> T:
            if name in self._items:
                raise ValueError(f"two {self.kind}s are called {name!r}")  # our bug, not the user's
            self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            raise unknown(self.kind, name, self._items)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)
