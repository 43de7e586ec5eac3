"""Between SI base units and what people write and read: 24GiB, 30m; ms, MiB, M, per cent. No other place converts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
PERIODS = {"s": 1.0, "m": 60.0, "h": 3600.0}

_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))

SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "B": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
    "1": tuple((factor, prefix) for factor, prefix in _DECIMAL[1:]),
    "MAC": tuple((factor, f"{prefix}MAC") for factor, prefix in _DECIMAL),
    "MAC/s": tuple((factor, f"{prefix}MAC/s") for factor, prefix in _DECIMAL),
    "1/s": ((1.0, "1/s"),),
    "fraction": ((0.01, "%"),),
    "x": ((1.0, "x"),),
}


@dataclass(frozen=True)
class Scale:
    """Divide an SI value by `factor` to have it in `name`."""

    factor: float
    name: str

    def text(self, value: float) -> str:
        """The number alone, to four digits; what is whole and was not scaled has no decimals."""
        whole = self.factor == 1 and math.isfinite(value) and float(value).is_integer() and abs(value) < 1e7
        return f"{value:.0f}" if whole else digits(value / self.factor)

    def with_unit(self, value: float) -> str:
        return f"{self.text(value)} {self.name}".strip()


def scale_for(unit: str, values: Iterable[float]) -> Scale:
    """One scale for a whole column: the largest in which its middle value is at least 1."""
    steps = SCALES.get(unit, ((1.0, unit),))
    sizes = sorted(abs(value) for value in values if math.isfinite(value) and value)
    if not sizes:
        return Scale(*min(steps, key=lambda step: abs(math.log(step[0]))))
    middle = sizes[len(sizes) // 2]
    return Scale(*next((step for step in steps if middle >= step[0]), steps[-1]))


def readable(value: float, unit: str) -> str:
    """One value with its own unit: ``12.3 ms``."""
    return scale_for(unit, [value]).with_unit(value)


def digits(value: float) -> str:
    """Four digits, and powers of ten only where they help: ``0.05000``, ``12.35``, ``11690``, ``3.1e-16``."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size == 0:
        return "0"
    if size < 1e-3 or size >= 1e7:
        return f"{value:.2g}"
    return f"{value:.0f}" if size >= 1000 else f"{value:#.4g}"


def full_digits(value: float) -> str:
    """Four digits as in `digits`, but large numbers in full: where a unit has been chosen already."""
    return f"{value:.0f}" if abs(value) >= 1e7 else digits(value)


def exact(value: float, unit: str) -> str | None:
    """A count to the last one, as ``1,234,567 B``; None where it is not finite or has more digits than a float."""
    if not math.isfinite(value) or abs(value) >= 1e15:
        return None
    return f"{value:,.0f} {unit.replace('1', '')}".strip()


def percent(share: float, least: float = 0.0) -> str:
    """Two digits, whole per cents from 99.5 on, and a size below `least` as 0: ``0.43 %``, ``12 %``, ``130 %``."""
    if abs(share) < least:
        return "0 %"
    return f"{100 * share:.2g} %" if abs(share) < 0.995 else f"{100 * share:.0f} %"


def gib(size: float) -> str:
    """Bytes as memories and disks are sold and shown: ``15.6 GiB``, whatever their size."""
    return f"{size / 2**30:.1f} GiB"


def interval(low: float, high: float, decimals: int = 2) -> str:
    """``[1.35, 1.41]``; nothing where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{low:.{decimals}f}, {high:.{decimals}f}]"


def duration(seconds: float) -> str:
    """3700 -> "1 h 2 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def as_seconds(value: Any) -> Any:
    """30, "30s", "10m", "2h" -> seconds. ValueError for another text; what is no text is given back."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smh]?)", value) if isinstance(value, str) else None
    if match:
        return float(match[1]) * PERIODS[match[2] or "s"]
    if isinstance(value, str):
        raise ValueError(f"{value!r} is not a time; write seconds, or 30s, 10m, 2h")
    return value


def as_bytes(value: Any) -> Any:
    """1024, "24GiB", "500 MB" -> bytes. ValueError for another text; what is no text is given back."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?B|B)", value) if isinstance(value, str) else None
    if match:
        return int(float(match[1]) * BYTES[match[2]])
    if isinstance(value, str):
        raise ValueError(f"{value!r} is not an amount of memory; write bytes, or 500MiB, 24GiB")
    return value
