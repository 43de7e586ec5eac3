"""Thirty seconds a cell, from the recorded fifteen: two measurements of the same cell and slowdown put together.

python results/studies/timing/pooled.py
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


def main() -> None:
    study = read(Path(__file__).parent / "full")
    logs: dict[tuple[str, str, float, int], list[float]] = defaultdict(list)
    by = ["condition", "reading", "delta", "experiment", "round"]
    for (condition, reading, delta, experiment, _), passes in study.samples.groupby(by, sort=False):
        ratio = round_log_ratio(passes["b"].tolist(), passes["a"].tolist())
        logs[condition, reading, delta, experiment].append(ratio)
    for delta in sorted({key[2] for key in logs}):
        slowed = median(sum(each) / len(each) for key, each in logs.items() if key[2] == delta)
        print(f"injected {delta:.0%}: the median ratio is {math.expm1(slowed):+.2%}")
    for together in (1, 2):
        print(f"{15 * together} s a cell: {counted(logs, together)}")


def counted(logs: dict[tuple[str, str, float, int], list[float]], together: int) -> dict[str, int]:
    """Verdicts by condition and slowdown, each of `together` measurements of one reading with one slowdown."""
    same: dict[tuple[str, str, float], list[list[float]]] = defaultdict(list)
    for (condition, reading, delta, _), each in logs.items():
        same[condition, reading, delta].append(each)
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
