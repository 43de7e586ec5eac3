"""Simulated samples of two sides that take turns, a study made of them, and the study's scripts by their paths."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

FOLDER = Path(__file__).parents[2] / "results" / "studies" / "timing"


def script(name: str) -> ModuleType:
    """A script of the study by its path; they import each other by name, as they do beside each other."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


rules, counts, figure, page, study = (script(name) for name in ("rules", "counts", "figure", "page", "study"))


def noise(rng: np.random.Generator, kind: str, shape: tuple[int, ...], sd: float) -> np.ndarray:
    """Log noise of one side; what is shared by both sides is not in here."""
    if kind == "t3":
        return sd * rng.standard_t(3, shape)
    drawn = rng.normal(0, sd, shape)
    if kind == "contaminated":  # 15 % of all passes are slower by up to a factor of two
        drawn += rng.uniform(0, math.log(2), shape) * (rng.random(shape) < 0.15)
    return drawn


def sides(rng: np.random.Generator, kind: str, experiments: int, delta: float = 0.0, passes: int = 48) -> np.ndarray:
    """Seconds per step [side, experiment, round, pass], ten rounds of fresh processes.

    Every process has a speed of its own (sd 0.4 %); `slow` adds periods of 8 passes in which both sides take 1.5 times
    as long: a neighbour that comes and goes, and reaches B one pass later than A.
    """
    shape = (2, experiments, 10, passes)
    logs = noise(rng, "normal" if kind == "slow" else kind, shape, 0.03)
    logs += rng.normal(0, 0.004, (*shape[:3], 1))
    if kind == "slow":
        periods = rng.random((1, *shape[1:3], passes // 8)) < 0.3
        hit = np.repeat(periods[0], 8, axis=2)
        logs += math.log(1.5) * np.stack([hit, np.roll(hit, 1, axis=2)])
    logs[1] += math.log1p(delta)
    return 2e-3 * np.exp(logs)


def round_logs(samples: np.ndarray) -> np.ndarray:
    """[experiment, round]: the median over passes, as harness takes it."""
    return np.median(np.log(samples[1] / samples[0]), axis=2)


def written(folder: Path, conditions: dict[str, str], deltas: tuple[float, ...], experiments: int = 6) -> pd.DataFrame:
    """A synthetic study with two readings an experiment, and its verdicts by harness's rule; returns the verdicts."""
    rng, samples, verdicts = np.random.default_rng(9), [], []
    for condition, kind in conditions.items():
        for delta in deltas:
            a, b = np.round(sides(rng, kind, 2 * experiments, delta, passes=16), 7)
            for experiment in range(experiments):
                name = experiment + 100 * len(verdicts)
                pair = [2 * experiment, 2 * experiment + 1]
                judged = rules.harness_matrix(np.median(np.log(b[pair] / a[pair]), axis=2))
                for reading, place, answer in zip(("k3", "k5"), pair, judged, strict=True):
                    key = {"condition": condition, "experiment": name, "reading": reading, "delta": delta}
                    flat = {"round": np.repeat(range(10), 16), "pass": np.tile(range(16), 10)}
                    samples.append(pd.DataFrame(key | flat | {"a": a[place].ravel(), "b": b[place].ravel()}))
                    word = {"worse": "REGRESSED", "better": "IMPROVED", "same": "SAME", "unsure": "INCONCLUSIVE"}
                    ends = {"ratio": answer.ratio, "low": answer.low, "high": answer.high}
                    row = key | {"verdict": word[answer.says]} | ends
                    verdicts.append(
                        row | {"rounds": 10, "seconds": 20.0 + place, "ended": "rounds", "confidence": 0.9975}
                    )
    table = pd.DataFrame(verdicts)
    table.to_csv(folder / "verdicts.csv.gz", index=False)
    pd.concat(samples).to_csv(folder / "samples.csv.gz", index=False)
    return table
