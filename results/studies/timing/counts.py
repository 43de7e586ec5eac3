"""Reading an A/A and power study, and counting what each rule said. Tables of numbers only; no text, no figure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rules import HARNESS, LEAST_SAMPLES, RULES, harness_matrix
from scipy import stats

from harness.errors import HarnessError
from harness.store.pairs import round_log_ratio

KEY = ["condition", "experiment", "reading", "delta"]
SAMPLES = [*KEY, "round", "pass", "a", "b"]
VERDICTS = [*KEY, "verdict", "ratio", "low", "high", "rounds", "seconds", "ended", "confidence"]
TEXTS = dict.fromkeys(("condition", "reading", "verdict", "ended"), "str")

CONDITIONS = ("quiet", "noisy")
DELTAS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.1)
"""What a whole study has; what it lacks is said, not assumed."""

SAID = {"REGRESSED": "worse", "IMPROVED": "better", "SAME": "same"}
CONFIDENCE = 0.95
"""Of the intervals of shares, which are counts of verdicts; the verdicts' own intervals are at 99 %."""

TURNS, HALVES = "turns", "halves"
"""Two ways to choose samples: both sides of the same rounds, or A of the first half and B of the second half."""


@dataclass(frozen=True)
class Study:
    """Both files of a study, sound rows only, and in plain words what they lack."""

    samples: pd.DataFrame
    verdicts: pd.DataFrame
    missing: list[str] = field(default_factory=list)


def read(*folders: Path) -> Study:
    """samples.csv.gz and verdicts.csv.gz of one folder or several, checked and put together."""
    samples, verdicts = (
        pd.concat([_table(folder / name, columns, place) for place, folder in enumerate(folders)], ignore_index=True)
        for name, columns in (("samples.csv.gz", SAMPLES), ("verdicts.csv.gz", VERDICTS))
    )
    if verdicts.duplicated(KEY).any():
        raise HarnessError(f"{folders[0]}: a cell has two verdicts", remedy="export the study again")
    sound = samples[["a", "b"]].gt(0).all(axis=1) & samples[["a", "b"]].lt(math.inf).all(axis=1)
    kept = samples[sound]
    missing = _absent(verdicts)
    if not sound.all():
        missing.append(f"{int((~sound).sum())} passes have no positive time on both sides and are left out")
    have, want = (set(frame[KEY].itertuples(index=False, name=None)) for frame in (kept, verdicts))
    if want - have:
        missing.append(f"{len(want - have)} verdicts have no samples: only harness is counted there")
    if have - want:
        missing.append(f"{len(have - want)} cells have samples and no verdict: harness is not counted there")
    sizes = kept.groupby(KEY).size()
    if (sizes < LEAST_SAMPLES).any():
        few = int((sizes < LEAST_SAMPLES).sum())
        missing.append(f"{few} cells have fewer than {LEAST_SAMPLES} passes: only harness is counted there")
    return Study(kept, verdicts, missing)


FOLDER = 100_000
"""What is added to the experiments' numbers of every further folder."""


def _table(path: Path, columns: list[str], place: int) -> pd.DataFrame:
    if not path.exists():
        raise HarnessError(f"{path} does not exist", remedy="harness aa --suite suites/aa.yaml --out FOLDER first")
    table = pd.read_csv(path, dtype={name: TEXTS[name] for name in columns if name in TEXTS})
    lacking = [name for name in columns if name not in table]
    if lacking:
        raise HarnessError(f"{path} has no column {', '.join(lacking)}", remedy="export the study again")
    if (table["delta"].abs() >= 1).any():
        raise HarnessError(f"{path}: a delta of 1 or more is no share", remedy="write 3 % as 0.03")
    delta, number = table["delta"].astype(float).round(6), table["experiment"] + place * FOLDER
    return table[columns].assign(delta=delta, experiment=number)


def _absent(verdicts: pd.DataFrame) -> list[str]:
    words = []
    for condition in CONDITIONS:
        found = set(verdicts.loc[verdicts["condition"] == condition, "delta"])
        if not found:
            words.append(f"condition {condition} was not measured")
            continue
        lacking = [f"{delta:.0%}" for delta in DELTAS if delta not in found]
        if lacking:
            words.append(f"condition {condition} has no cells with a delta of {', '.join(lacking)}")
    return words


def judgements(study: Study) -> pd.DataFrame:
    """One row per cell, rule and way to choose samples: `says` is worse, better, same or unsure."""
    own = study.verdicts[KEY].assign(rule=HARNESS, way=TURNS, says=study.verdicts["verdict"].map(SAID).fillna("unsure"))
    rows = []
    for key, cell in study.samples.groupby(KEY, sort=False):
        chosen = {TURNS: (cell["a"].to_numpy(), cell["b"].to_numpy())}
        if key[3] == 0:
            chosen[HALVES] = halves(cell)
        for way, (a, b) in chosen.items():
            if len(a) >= LEAST_SAMPLES:
                rows += [(*key, rule.name, way, rule.judge(a, b)) for rule in RULES]
    return pd.concat([own, pd.DataFrame(rows, columns=[*KEY, "rule", "way", "says"])], ignore_index=True)


def halves(cell: pd.DataFrame) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A's samples of the first half of the rounds and B's of the second half: two runs, one after the other.

    A middle round is left out, and the longer side is cut: pyperf's test wants as many values before as now.
    """
    rounds = np.sort(cell["round"].unique())
    half = len(rounds) // 2
    first, second = cell["round"].isin(rounds[:half]), cell["round"].isin(rounds[len(rounds) - half :])
    size = min(int(first.sum()), int(second.sum()))
    return cell.loc[first, "a"].to_numpy()[:size], cell.loc[second, "b"].to_numpy()[:size]


def proportion(count: int, n: int) -> dict[str, float]:
    """A share with its exact (Clopper-Pearson) 95 % interval, and the one-sided upper bound at 95 %."""
    if not n:
        return {"share": math.nan, "low": math.nan, "high": math.nan, "upper": math.nan}
    two = stats.binomtest(count, n).proportion_ci(CONFIDENCE, "exact")
    one = stats.binomtest(count, n, alternative="less").proportion_ci(CONFIDENCE, "exact")
    return {"share": count / n, "low": float(two.low), "high": float(two.high), "upper": float(one.high)}


def false_alarms(said: pd.DataFrame) -> pd.DataFrame:
    """Per condition, rule and way: how often a rule saw a difference between a program and itself."""
    rows = []
    for (condition, rule, way), cells in said[said["delta"] == 0].groupby(["condition", "rule", "way"], sort=False):
        worse, better = (int((cells["says"] == word).sum()) for word in ("worse", "better"))
        counts = {"n": len(cells), "worse": worse, "better": better, "alarms": worse + better}
        row = {"condition": condition, "rule": rule, "way": way, **counts}
        rows.append(row | proportion(worse + better, len(cells)))
    return pd.DataFrame(rows)


def detections(said: pd.DataFrame) -> pd.DataFrame:
    """Per condition, rule and injected slowdown: how often the rule said worse."""
    rows = []
    injected = said[(said["delta"] > 0) & (said["way"] == TURNS)]
    for (condition, rule, delta), cells in injected.groupby(["condition", "rule", "delta"], sort=False):
        counts = {word: int((cells["says"] == word).sum()) for word in ("worse", "better", "same", "unsure")}
        row = {"condition": condition, "rule": rule, "delta": delta, "n": len(cells), **counts}
        rows.append(row | proportion(counts["worse"], len(cells)))
    return pd.DataFrame(rows)


def effort(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Per condition and injected slowdown: what harness said, and the rounds and seconds a cell took."""
    rows = []
    for (condition, delta), cells in verdicts.groupby(["condition", "delta"], sort=False):
        said, ended = cells["verdict"].value_counts(), cells["ended"].value_counts()
        row: dict[str, Any] = {"condition": condition, "delta": delta, "n": len(cells)}
        row |= {word: int(said.get(word, 0)) for word in ("SAME", "REGRESSED", "IMPROVED", "INCONCLUSIVE")}
        row |= {"rounds": float(cells["rounds"].median()), "seconds": float(cells["seconds"].median())}
        row |= {f"ended_{rule}": int(ended.get(rule, 0)) for rule in ("precision", "rounds", "seconds")}
        rows.append(row)
    return pd.DataFrame(rows)


def coverage(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Per condition and injected slowdown: how often the interval of B / A contains 1 + delta."""
    known = verdicts[np.isfinite(verdicts[["low", "high"]]).all(axis=1)]
    truth = 1 + known["delta"]
    known = known.assign(
        covers=(known["low"] <= truth) & (truth <= known["high"]), width=known["high"] / known["low"] - 1
    )
    rows = []
    for (condition, delta), cells in known.groupby(["condition", "delta"], sort=False):
        count = int(cells["covers"].sum())
        row = {"condition": condition, "delta": delta, "n": len(cells), "covered": count}
        rows.append(row | proportion(count, len(cells)) | {"width": float(cells["width"].median())})
    return pd.DataFrame(rows)


def recomputed(study: Study) -> dict[str, Any]:
    """harness's verdicts and intervals once more, from the samples: what the files say must be what the data say."""
    logs = {
        key: [round_log_ratio(one["b"].tolist(), one["a"].tolist()) for _, one in cell.groupby("round")]
        for key, cell in study.samples.groupby(KEY, sort=False)
    }
    given = study.verdicts.set_index(KEY)
    differ, apart, ends, n = [], 0.0, 0.0, 0
    for _, cells in given.groupby(level=["condition", "experiment"], sort=False):
        keys = [key for key in cells.index if key in logs]
        confidence = float(cells["confidence"].iloc[0])
        for key, again in zip(keys, harness_matrix([logs[key] for key in keys], confidence), strict=True):
            cell = cells.loc[key]
            n += 1
            apart = max(apart, abs(again.ratio / cell["ratio"] - 1))
            ends = np.nanmax([ends, abs(again.low / cell["low"] - 1), abs(again.high / cell["high"] - 1)])
            if again.says != SAID.get(cell["verdict"], "unsure"):
                differ.append([*map(str, key), str(cell["verdict"]), again.says])
    return {"n": n, "ratio_apart": float(apart), "ends_apart": float(ends), "verdicts_differ": differ}
