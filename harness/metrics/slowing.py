"""A slowdown made on purpose, of a known size: what verdicts are tried on."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter


def slowed(step: Callable[[], object], share: float) -> Callable[[], object]:
    """The same step, and after it a busy wait for `share` of the time that it took: 0.05 makes it 5 % slower.

    It keeps this thread at work, as slower code would. For steps that are done when they return (the cpu): of one
    that only launches work it would prolong the launch.
    """

    def run() -> object:
        began = perf_counter()
        result = step()
        now = perf_counter()
        end = now + share * (now - began)
        while now < end:
            now = perf_counter()
        return result

    return run
