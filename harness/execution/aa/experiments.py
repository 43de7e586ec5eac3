"""`harness aa`: the same code against itself, many times, as `ab` would measure it, some of it slowed on purpose.

An experiment is one `ab` of the suite's timed metrics: two sides of the same source, taking turns in lockstep, as
many rounds as the suite's budget and precision ask for. On one side each cell is made slower by a share that was
drawn for it, often 0. Whatever the verdict then says of a cell is known to be right or wrong.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from harness import catalog
from harness.errors import HarnessError
from harness.execution.aa.burning import burning
from harness.execution.ab.lockstep import HEAD, SIDES, Duel, PairedStopping
from harness.execution.local import Death, LocalExecutor
from harness.execution.stopping import GO_ON, Key
from harness.machine.fingerprint import environment, fingerprint
from harness.planning import Plan
from harness.records import Json, Record, Task, TaskKind
from harness.store.locks import device_lock
from harness.store.pairs import ORDER

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


class Laboratory:
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

    def __enter__(self) -> Laboratory:
        for device in sorted({cell.device.name for task in self.tasks for cell in task.cells}):
            self._stack.enter_context(device_lock(device, "harness aa"))
        self.duel = Duel([self._stack.enter_context(LocalExecutor()) for _ in SIDES])
        return self

    def __exit__(self, *problem: Any) -> None:
        self._stack.__exit__(*problem)

    def experiment(self, number: int) -> Json:
        """One experiment as a line of the book: what was drawn, every sample of both sides, how it ended."""
        slowed = self._drawn(number)
        self.duel.sides[HEAD].slowed = {cell: share for cell, share in slowed.items() if share}
        stopping = PairedStopping(self.plan.groups, self.tasks)
        samples: tuple[Rounds, Rounds] = (defaultdict(dict), defaultdict(dict))
        ended: dict[str, Json] = {}
        began = time.monotonic()
        with burning(self.conditions.burn, seed=hash((self.conditions.seed, number))) as burn:
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
            "burned": burn.taken,
            "seconds": round(time.monotonic() - began, 3),
            "samples": [_plain(side) for side in samples],
        }

    def _drawn(self, number: int) -> dict[str, float]:
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

            return self.duel.sides[side].perform(task, task.key, "", emit)

        deaths = [death for death in self.duel.both(work) if death is not None]
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
    book = _opened(out, meta, conditions)
    done = [found for found in read(out) if found["condition"] == conditions.name]
    yield from done
    if len(done) >= wanted:
        return
    with Laboratory(plan, conditions) as laboratory, book.open("a", encoding="utf-8") as file:
        for number in range(len(done), wanted):
            found = laboratory.experiment(number)
            file.write(json.dumps(found, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
            yield found


def perform(
    plan: Plan,
    conditions: Conditions,
    wanted: int,
    out: Path,
    suite: Path,
    overrides: Sequence[str],
    console: Console,
) -> None:
    """`experiments`, told as they are done; what they were made with is written beside them."""
    with LocalExecutor() as executor:
        probe = executor.probe(sorted({cell.device.name for cell in plan.cells}))
    same = {"plan": plan.id, "fingerprint": fingerprint(probe).to_json()}
    text = suite.read_text(encoding="utf-8")
    meta = {
        "same": same, "suite_path": str(suite), "suite_text": text, "overrides": list(overrides),
        "environment": environment(probe),
    }  # fmt: skip
    for found in experiments(plan, conditions, wanted, out, meta):
        told = f"[{found['experiment'] + 1}/{wanted}] {found['condition']}: {found['seconds']:.0f} s"
        console.print(told, markup=False, highlight=False, soft_wrap=True)


def _opened(out: Path, meta: Json, conditions: Conditions) -> Path:
    """The book to append to; `meta` and the conditions of this call are written beside it."""
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
    book = out / NAME
    if book.exists() and not book.read_bytes().endswith(b"\n"):
        book.write_bytes(book.read_bytes() + b"\n")  # a killed call left half a line: the next must not join it
    return book


def read(out: Path) -> Sequence[Json]:
    """The finished experiments of a folder; a line that a kill has torn is left out."""
    found = []
    book = out / NAME
    if book.exists():
        for line in book.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found
