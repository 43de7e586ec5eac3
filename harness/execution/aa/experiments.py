"""The experiments of `harness aa`: the same code against itself as `ab` would measure it, in part slowed on purpose.

An experiment is one `ab` of the suite's timed metrics: two sides of the same source, taking turns in lockstep, as
many rounds as the suite's budget and precision ask for. On one side each cell is made slower by a share that was
drawn for it, often 0. Whatever the verdict then says of a cell is known to be right or wrong.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from harness import catalog
from harness.errors import HarnessError
from harness.execution.aa.background_load import background_load
from harness.execution.ab.lockstep import HEAD, SIDES, PairedExecutors, PairedStopping
from harness.execution.executor import Death
from harness.execution.local import LocalExecutor
from harness.execution.stopping import GO_ON, Key
from harness.machine.fingerprint import environment, fingerprint
from harness.planning import Plan
from harness.records import Json, Record, Task, TaskKind
from harness.store.lines import LineFile, read_lines
from harness.store.locks import device_lock
from harness.store.pairs import ORDER
from harness.worker.messages import Order

NAME = "experiments.jsonl"
META = "aa.json"

Rounds = dict[int, dict[Key, list[float]]]
"""Round -> reading -> seconds per step, one value per pass."""


@dataclass(frozen=True)
class Conditions:
    """What the experiments of one call have in common. `slowdowns` are shares, drawn evenly for every cell."""

    slowdowns: tuple[float, ...]
    burn: float
    seed: int

    @property
    def name(self) -> str:
        """`quiet` is nothing of ours beside it: what else the machine does is in the record."""
        return "noisy" if self.burn else "quiet"


class ExperimentRunner:
    """Performs experiments one after the other; use as a context manager."""

    def __init__(self, plan: Plan, conditions: Conditions) -> None:
        self.tasks = [task for task in plan.tasks if task.kind is TaskKind.VISIT]
        if not self.tasks:
            raise HarnessError(
                f"suite {plan.suite.name} has no timed metric, so there is nothing that could be a false alarm",
                remedy="use a suite with latency or train_step, as suites/aa.yaml",
            )
        used = {cell.device.name for task in self.tasks for cell in task.cells}
        elsewhere = [name for name in sorted(used) if not catalog.device(name)["host"]]
        if elsewhere and any(conditions.slowdowns):
            raise HarnessError(
                f"a slowdown can be injected on the cpu only; this suite measures on {', '.join(elsewhere)}",
                remedy="use --slowdowns 0 for the false-alarm rate alone",
            )
        self.plan, self.conditions = plan, conditions
        self._stack = ExitStack()

    def __enter__(self) -> ExperimentRunner:
        for device in sorted({cell.device.name for task in self.tasks for cell in task.cells}):
            self._stack.enter_context(device_lock(device, "harness aa"))
        self.pair = PairedExecutors([self._stack.enter_context(LocalExecutor()) for _ in SIDES])
        return self

    def __exit__(self, *problem: Any) -> None:
        self._stack.__exit__(*problem)

    def run(self, number: int) -> Json:
        """One experiment as a line of the log: what was drawn, every sample of both sides, how it ended."""
        slowed = self._draw(number)
        self.pair.sides[HEAD].slowed = {cell: share for cell, share in slowed.items() if share}
        stopping = PairedStopping(self.plan.groups, self.tasks)
        samples: tuple[Rounds, Rounds] = (defaultdict(dict), defaultdict(dict))
        ended: dict[str, Json] = {}
        began = time.monotonic()
        with background_load(self.conditions.burn, seed=hash((self.conditions.seed, number))) as load:
            for task in self.tasks:
                if not stopping.settled(task):
                    self._round(task, stopping, samples)
                    look = stopping.look(task, "")
                    if look is not None:
                        stopping.learn(look)
                        if look.facts["rule"] != GO_ON:
                            ended[look.cell] = {"rule": look.facts["rule"], "rounds": look.facts["rounds"]}
        return {
            "experiment": number,
            "condition": self.conditions.name,
            "slowed": slowed,
            "ended": ended,
            "burned": load.used,
            "seconds": round(time.monotonic() - began, 3),
            "samples": [_plain(side) for side in samples],
        }

    def _draw(self, number: int) -> dict[str, float]:
        """Cell id -> its slowdown in this experiment."""
        draw = random.Random(f"{self.conditions.seed}/{number}")
        cells = {cell.id: cell for task in self.tasks for cell in task.cells}
        return {cell: draw.choice(self.conditions.slowdowns) for cell in cells}

    def _round(self, task: Task, stopping: PairedStopping, samples: tuple[Rounds, Rounds]) -> None:
        """Both sides' process of one round; a variant that fails on either side has no reading in it."""
        found: tuple[list[Record], list[Record]] = ([], [])

        def work(side: int) -> Death | None:
            def emit(message: Json) -> None:
                if "record" in message:
                    found[side].append(Record.from_json(message["record"]))

            return self.pair.sides[side].perform(Order(task, task.key, ""), emit)

        deaths = [death for death in self.pair.run_both(work) if death is not None]
        if deaths:
            raise HarnessError(
                f"a worker died in an experiment: {deaths[0].status}: {deaths[0].reason}\n{deaths[0].output}".rstrip(),
                remedy="see whether 'harness run' measures this suite; give aa one that runs well",
            )
        for side in SIDES:
            for record in found[side]:
                stopping.learn_from(side, record)
                for reading in record.readings:
                    if ORDER in reading.facts:
                        samples[side][task.round][record.cell, reading.metric, reading.form] = list(reading.values)


def _plain(side: Rounds) -> Json:
    """Round -> cell/metric/form -> seconds, as JSON keeps it; five digits, a thousand times finer than the noise."""
    return {
        str(round_): {"/".join(key): [float(f"{value:.5g}") for value in values] for key, values in found.items()}
        for round_, found in side.items()
    }


def experiments(plan: Plan, conditions: Conditions, wanted: int, out: Path, meta: Json) -> Iterator[Json]:
    """Perform experiments until the folder `out` holds `wanted`, each on disk before the next begins; yields all.

    A folder of the same suite and code is gone on with, condition by condition; HarnessError for one of another.
    """
    _prepare(out, meta, conditions)
    done = [found for found in read(out) if found["condition"] == conditions.name]
    yield from done
    if len(done) >= wanted:
        return
    with ExperimentRunner(plan, conditions) as runner, closing(LineFile(out / NAME, separators=(",", ":"))) as log:
        for number in range(len(done), wanted):
            found = runner.run(number)
            log.append(found)
            yield found


def run_experiments(
    plan: Plan,
    conditions: Conditions,
    wanted: int,
    out: Path,
    suite: Path,
    overrides: Sequence[str],
    console: Console,
) -> None:
    """`experiments`, printed as they are done; what they were made with is written beside them."""
    with LocalExecutor() as executor:
        probe = executor.probe(sorted({cell.device.name for cell in plan.cells}))
    same = {"plan": plan.id, "fingerprint": fingerprint(probe).to_json()}
    text = suite.read_text(encoding="utf-8")
    meta = {
        "same": same, "suite_path": str(suite), "suite_text": text, "overrides": list(overrides),
        "environment": environment(probe),
    }  # fmt: skip
    for found in experiments(plan, conditions, wanted, out, meta):
        line = f"[{found['experiment'] + 1}/{wanted}] {found['condition']}: {found['seconds']:.0f} s"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _prepare(out: Path, meta: Json, conditions: Conditions) -> None:
    """Write `meta` and the conditions of this call into the folder; HarnessError where it holds other experiments."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        known = out / META
        if known.exists():
            old = json.loads(known.read_text(encoding="utf-8"))
            asked = json.loads(json.dumps(asdict(conditions)))
            if old["same"] != meta["same"] or old["conditions"].get(conditions.name, asked) != asked:
                raise HarnessError(
                    f"{str(out)!r} holds experiments of another suite, code, machine or condition",
                    remedy="name another folder with --out",
                )
            meta = old
        elif any(out.iterdir()):
            raise HarnessError(f"{str(out)!r} is not empty", remedy="name a new folder with --out")
        else:
            meta = {**meta, "conditions": {}}
        meta["conditions"][conditions.name] = asdict(conditions)
        known.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError, KeyError) as problem:
        raise HarnessError(f"{str(out)!r} cannot be used: {problem}", remedy="name another folder with --out") from None


def read(out: Path) -> Sequence[Json]:
    """The finished experiments of a folder; a line that a kill has torn is left out."""
    return [found for found in read_lines(out / NAME) if found is not None]
