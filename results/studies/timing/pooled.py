"""Thirty seconds a cell, from the recorded fifteen: two measurements of the same cell and slowdown put together.

    python results/studies/timing/pooled.py

A busy wait of 5 % made the steps of `full/` slower by 6.1 % (median). So everything is counted twice: as it was
injected, and with the slowed side's samples scaled down until the median slowdown is 5 %.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path
from statistics import median

from counts import read

from harness.planning.looks import shared_confidence
from harness.store.pairs import round_log_ratio
from harness.verdict.rules import PAIRED_TIME_THRESHOLD, Paired, judge_paired
from harness.verdict.statistics import spread

SLOWED = 0.05


def main() -> None:
    study = read(Path(__file__).parent / "full")
    logs: dict[tuple[str, str, float, int], list[float]] = defaultdict(list)
    by = ["condition", "reading", "delta", "experiment", "round"]
    for (condition, reading, delta, experiment, _), passes in study.samples.groupby(by, sort=False):
        ratio = round_log_ratio(passes["b"].tolist(), passes["a"].tolist())
        logs[condition, reading, delta, experiment].append(ratio)
    slowed = median(sum(each) / len(each) for key, each in logs.items() if key[2])
    print(f"median slowdown where {SLOWED:.0%} was injected: {math.expm1(slowed):.2%}")
    for name, shift in (("as injected", 0.0), ("scaled to 5 %", math.log1p(SLOWED) - slowed)):
        for together in (1, 2):
            print(f"{name}, {15 * together} s a cell: {counted(logs, shift, together)}")


def counted(logs: dict[tuple[str, str, float, int], list[float]], shift: float, together: int) -> dict[str, int]:
    """Verdicts by condition and slowdown, each of `together` measurements of one reading with one slowdown."""
    same: dict[tuple[str, str, float], list[list[float]]] = defaultdict(list)
    for (condition, reading, delta, _), each in logs.items():
        same[condition, reading, delta].append([log + (shift if delta else 0.0) for log in each])
    found: Counter[str] = Counter()
    for condition in ("quiet", "noisy"):
        questions, deltas = [], []
        for (where, _, delta), several in same.items():
            if where == condition:
                for start in range(0, len(several) - together + 1, together):
                    rounds = [log for each in several[start : start + together] for log in each]
                    questions.append(Paired(spread(rounds), "lower", PAIRED_TIME_THRESHOLD))
                    deltas.append(delta)
        for delta, answer in zip(deltas, judge_paired(questions, shared_confidence(10, 0.02)), strict=True):
            found[f"{condition} {delta:.0%} {answer.verdict}"] += 1
    return dict(sorted(found.items()))


if __name__ == "__main__":
    main()
