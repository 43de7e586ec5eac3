"""How the rate of a training rises and falls: factors of the optimizer's own rate, step by step."""

from __future__ import annotations

import math

WARMUP_SHARE = 0.1
"""Of the steps; the rate rises linearly over them and falls to zero along a cosine."""


def warmup_and_cosine(step: int, total: int) -> float:
    """The factor of step `step` (from 0) of `total`."""
    warmup = max(1, int(total * WARMUP_SHARE))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
