"""Seconds as people say them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """3700 -> "1 h 2 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
