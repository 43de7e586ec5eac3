"""What `harness aa` found, for people, for programs, and as raw samples for any other statistics."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from tabulate import tabulate

from harness.planning import Plan
from harness.planning.looks import shared_confidence
from harness.records import AXES, Cell, Json
from harness.verdict.error_rates import ErrorRates, Share, error_rates, trials_of

SAMPLES, VERDICTS, SUMMARY = "samples.csv.gz", "verdicts.csv.gz", "calibration.json"


def write_error_rates(plan: Plan, experiments: Sequence[Json], folder: Path, as_json: bool) -> str:
    """The counts, in print; they, the samples and the verdicts are written beside the experiments."""
    budget = plan.suite.budget
    confidence = shared_confidence(budget.rounds, budget.precision)
    found = error_rates(experiments, confidence)
    counts = error_rates_json(found, confidence)
    export(experiments, cell_names(plan.cells), confidence, folder)
    (folder / SUMMARY).write_text(counts + "\n", encoding="utf-8")
    text = f"{error_rates_text(found, confidence)}\n\n{folder}: every sample, every verdict and these counts"
    return counts if as_json else text


def error_rates_text(found: Sequence[ErrorRates], confidence: float) -> str:
    """Counts with their bounds per condition, what can be found, and which threshold suits this machine."""
    return "\n\n".join(_condition(rates, confidence) for rates in found)


def _condition(found: ErrorRates, confidence: float) -> str:
    if not found.covered.of:
        return f"{found.condition}: {found.experiments} experiments, and no reading in them that could be judged"
    alarms, threshold = found.false_alarms, 100 * found.threshold
    unchanged = [
        ["false alarms on unchanged code", _counted(alarms), f"at most {100 * alarms.upper:.2g} % (95 % sure)"],
        ["unchanged code called SAME", _counted(found.same), f"{100 * found.same.value:.1f} %"],
    ]
    rows = [
        *(unchanged if alarms.of else [["unchanged code", "none", "give --slowdowns a 0 for false alarms"]]),
        [f"99 % intervals with the truth in them ({100 * confidence:.4g} % a look)", _counted(found.covered),
         f"{100 * found.covered.value:.2f} %, at least {100 * found.covered.lower:.2f} % (95 % sure)"],
    ]  # fmt: skip
    rows += [
        [f"slower by {100 * share:g} %, called REGRESSED", _counted(got), f"{100 * got.value:.0f} %"]
        for share, got in found.found.items()
    ]
    lines = [
        f"{found.condition}: {found.experiments} experiments, threshold {threshold:g} %, "
        f"{found.seconds_per_cell:.1f} s and {found.rounds:g} rounds a cell (medians)",
        tabulate(rows, tablefmt="simple", disable_numparse=True),
    ]
    return "\n".join([*lines, *_advice(found)])


def _counted(share: Share) -> str:
    return f"{share.count} of {share.of}"


def _advice(found: ErrorRates) -> Iterator[str]:
    if found.found:
        smallest = found.smallest
        yield (
            "no injected slowdown was found in 95 % of its trials"
            if smallest is None
            else f"the smallest slowdown found in 95 % of its trials: {100 * smallest:g} %"
        )
    if not found.false_alarms.of:
        return
    yield (
        "no threshold suits this machine with so many rounds and seconds: give it more of them, or a quieter machine"
        if found.suited is None
        else f"a threshold that suits this machine: {100 * found.suited:g} % (no false alarm here, 95 % called SAME); "
        f"in a suite: gates: {{train_step: {{side_by_side: {found.suited:g}}}}}"
    )


def error_rates_json(found: Sequence[ErrorRates], confidence: float) -> str:
    """The same for a program; shares as [count, of, lower bound, upper bound]."""

    def plain(share: Share) -> Json:
        return [share.count, share.of, share.lower, share.upper] if share.of else [0, 0, None, None]

    conditions = {
        c.condition: {
            "experiments": c.experiments,
            "threshold": c.threshold,
            "confidence_per_look": confidence,
            "false_alarms": plain(c.false_alarms),
            "same": plain(c.same),
            "covered": plain(c.covered),
            "found": {f"{share:g}": plain(got) for share, got in c.found.items()},
            "smallest": c.smallest,
            "suited_threshold": c.suited,
            "seconds_per_cell": c.seconds_per_cell if math.isfinite(c.seconds_per_cell) else None,
            "rounds": c.rounds if math.isfinite(c.rounds) else None,
        }
        for c in found
    }
    return json.dumps(conditions, indent=1)


def cell_names(cells: Sequence[Cell]) -> dict[str, str]:
    """Cell id -> the block and whatever else varies over the cells, in a few words."""
    axes = {cell.id: cell.axes() for cell in cells}
    vary = [axis for axis in AXES if axis == "block" or len({each[axis] for each in axes.values()}) > 1]
    return {cell: " ".join(str(each[axis]) for axis in vary) for cell, each in axes.items()}


def export(experiments: Sequence[Json], names: dict[str, str], confidence: float, out: Path) -> None:
    """Write every sample of both sides and every verdict as compressed CSV; `names`: cell id -> its name in print."""
    _write(out / SAMPLES, ["condition", "experiment", "reading", "delta", "round", "pass", "a", "b"],
           _samples(experiments, names))  # fmt: skip
    columns = ["condition", "experiment", "reading", "delta", "verdict", "ratio", "low", "high", "rounds", "seconds"]
    _write(out / VERDICTS, [*columns, "ended", "confidence"], _verdicts(experiments, names, confidence))


def _samples(experiments: Sequence[Json], names: dict[str, str]) -> Iterator[Sequence[Json]]:
    for experiment in experiments:
        base, head = experiment["samples"]
        for round_, readings in head.items():
            for reading, values in readings.items():
                delta = experiment["slowed"][reading.partition("/")[0]]
                label, before = _label(reading, names), base.get(round_, {}).get(reading, ())
                for number, (a, b) in enumerate(zip(before, values, strict=False)):
                    yield experiment["condition"], experiment["experiment"], label, delta, round_, number, a, b


def _verdicts(experiments: Sequence[Json], names: dict[str, str], confidence: float) -> Iterator[Sequence[Json]]:
    for row in trials_of(experiments, confidence):
        numbers = [f"{value:.6g}" for value in (row.ratio, row.low, row.high)]
        yield (
            row.condition, row.experiment, _label(row.reading, names), row.slowed, row.verdict, *numbers, row.rounds,
            round(row.seconds, 2), row.ended, f"{confidence:.6g}",
        )  # fmt: skip


def _label(reading: str, names: dict[str, str]) -> str:
    cell, _, rest = reading.partition("/")
    return f"{names[cell]}/{rest}"


def _write(path: Path, columns: Sequence[str], rows: Iterator[Sequence[Json]]) -> None:
    # no time in the header: the same samples give the same file
    with gzip.GzipFile(path, "wb", mtime=0) as packed, io.TextIOWrapper(packed, encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
