"""Plants every fault of the catalogue, one at a time, and counts those that no test notices.

    python tests/mutations/run.py [--only ID|AREA ...] [--jobs 2] [--out FOLDER]

Every worker has a copy of the repository. First the tests that
the faults name must pass without any fault; then each fault is planted in the copy, its tests run (one process, up to
the first that fails), and the file is put back. What was found is in FOLDER/results.jsonl, a line for each fault: what
stands there for the same fault in the same tree is not run again. FOLDER/README.md is the table.

Ends with 0 when every fault was noticed, 1 when one was not, 2 when the catalogue does not fit the code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.context import BaseContext
from pathlib import Path
from time import monotonic
from typing import Any

from catalogue import AREAS, ROOT, DoesNotApply, Fault, chosen, load

OUT = ROOT / "results" / "studies" / "mutations"
TIMEOUT = 120.0
"""Seconds for the tests of one fault; they take about ten. A fault that lets them wait for ever is noticed too."""

BASELINE_TIMEOUT = 1800.0
"""Seconds for all tests that the faults name, together and without a fault."""

PASSED, FAILED, INTERRUPTED = 0, 1, 2
"""pytest's exit codes; a file that cannot be imported any more interrupts it. What is above is the catalogue's fault."""

LEFT_OUT = ("__pycache__", ".*", "runs", "mutations")
"""Of the copy: what is made or measured, and these faults."""

JUDGED = ("harness", "tests")
"""What the digest of a tree is of."""

SURVIVED = "SURVIVED"

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torchvision", "timm", "pandas", "scipy.stats", "pydantic", "yaml", "pytest"])
"""What takes seconds to import is imported once."""


@dataclass(frozen=True)
class Outcome:
    """What became of one fault: the test that noticed it (empty when none did), and the seconds that took."""

    id: str
    key: str
    tree: str
    killed_by: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return vars(self)


class Copy:
    """A copy of the working tree, in which faults are planted one after the other."""

    def __init__(self, root: Path, folder: Path, processes: BaseContext = SERVER) -> None:
        self.root, self.folder, self.processes = root, folder, processes
        shutil.copytree(root, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
        # by their contents: two texts of one length and one second must not be taken for one another
        compiled = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "harness"]
        subprocess.run(compiled, cwd=folder, check=True)

    def outcome(self, fault: Fault, tree: str) -> Outcome:
        """Plant the fault, run its tests, and put the file back. DoesNotApply where its tests cannot be run."""
        path = self.folder / fault.file
        sound = path.read_text(encoding="utf-8")
        began = monotonic()
        try:
            path.write_text(fault.planted(self.folder), encoding="utf-8")
            killed_by = self.first_failure(fault.tests, TIMEOUT)
        finally:
            path.write_text(sound, encoding="utf-8")
        return Outcome(fault.id, fault.key, tree, killed_by, round(monotonic() - began, 1))

    def first_failure(self, tests: Iterable[str], timeout: float) -> str:
        """The first test that fails; empty when all pass. DoesNotApply when pytest cannot run them."""
        output = self.folder / "pytest.txt"
        process = self.processes.Process(target=_pytest, args=(str(self.folder), list(tests), str(output)))
        process.start()
        process.join(timeout)
        if process.is_alive():
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return f"nothing ended within {timeout:.0f} s"
        if process.exitcode == PASSED:
            return ""
        printed = output.read_text(encoding="utf-8", errors="replace")
        failed = _failed(printed)
        if process.exitcode not in (FAILED, INTERRUPTED) or not failed:
            raise DoesNotApply(f"pytest cannot run {' '.join(tests)}:\n{printed[-3000:]}")
        return failed


def _pytest(folder: str, tests: list[str], output: str) -> None:
    """In a process of its own, forked where the heavy modules are imported already and nothing of harness is."""
    os.setsid()  # its children are in its group, and end with it
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path[:] = [folder, *(path for path in sys.path if path not in (str(ROOT), str(Path(__file__).parent)))]
    assert "harness" not in sys.modules

    import pytest

    options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "--no-header", "-m", "not alone"]
    sys.exit(pytest.main([*options, *tests]))


def _failed(output: str) -> str:
    """The name of the first test in pytest's summary; a parameter may have blanks in it."""
    for line in output.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("FAILED", "ERROR") and rest.startswith("tests/"):
            return rest.partition(" - ")[0]
    return ""


def digest_of(root: Path) -> str:
    """A short hash of harness/ and tests/, but for the faults themselves."""
    found = hashlib.sha256()
    for name in JUDGED:
        for path in sorted((root / name).rglob("*")):
            parts = path.relative_to(root).parts
            if path.is_file() and not {"__pycache__", "mutations"} & set(parts):
                found.update("/".join(parts).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


class Results:
    """results.jsonl: lines are added as they are known, the last one of a fault counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.known = {line["id"]: Outcome(**line) for line in map(json.loads, lines)}
        self._lock = threading.Lock()

    def has(self, fault: Fault, tree: str) -> bool:
        known = self.known.get(fault.id)
        return known is not None and (known.key, known.tree) == (fault.key, tree)

    def add(self, outcome: Outcome) -> None:
        with self._lock:
            self.known[outcome.id] = outcome
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(outcome.to_json()) + "\n")

    def rewrite(self, faults: Sequence[Fault]) -> None:
        """One line a fault, in the catalogue's order; faults that are in it no more are left out."""
        lines = [json.dumps(self.known[fault.id].to_json()) for fault in faults if fault.id in self.known]
        self.path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def plant_all(faults: Sequence[Fault], results: Results, tree: str, root: Path = ROOT, jobs: int = 1) -> None:
    """Add an outcome for every fault that has none of `tree`, which is that of `root`.

    DoesNotApply when one cannot be planted, or when its tests fail without it.
    """
    for fault in faults:
        fault.planted(root)
        if lacking := fault.lacking(root):
            raise DoesNotApply(f"{fault.id} names tests that are not there: {', '.join(lacking)}")
    todo = [fault for fault in faults if not results.has(fault, tree)]
    if not todo:
        return
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copies = [Copy(root, Path(folder, str(number))) for number in range(min(jobs, len(todo)))]
        _must_pass(copies[0], todo)
        queue = iter(todo)
        taking = threading.Lock()

        def work(copy: Copy) -> None:
            while True:
                with taking:
                    fault = next(queue, None)
                if fault is None:
                    return
                outcome = copy.outcome(fault, tree)
                results.add(outcome)
                print(f"{fault.area:8} {fault.id}: {outcome.killed_by or SURVIVED} ({outcome.seconds} s)", flush=True)

        with ThreadPoolExecutor(len(copies)) as pool:
            list(pool.map(work, copies))


def _must_pass(copy: Copy, faults: Sequence[Fault]) -> None:
    """All that the faults name, without a fault: together, so that nothing is run or imported twice."""
    tests = list(dict.fromkeys(test for fault in faults for test in fault.tests))
    whole = {test for test in tests if "::" not in test}
    failing = copy.first_failure(
        (t for t in tests if t in whole or t.partition("::")[0] not in whole), BASELINE_TIMEOUT
    )
    if failing:
        raise DoesNotApply(f"without any fault {failing} fails")


def table(faults: Sequence[Fault], known: Mapping[str, Outcome], tree: str) -> str:
    """The README of the study: counts by area, then every fault."""
    lines = ["# Planted faults, and the tests that notice them", "", _environment(tree), ""]
    lines += ["| area | faults | noticed | survived | not run | seconds |", "|---|---:|---:|---:|---:|---:|"]
    for area in (*AREAS, "all"):
        mine = [fault for fault in faults if area in (fault.area, "all")]
        run = [known[fault.id] for fault in mine if fault.id in known]
        noticed = sum(bool(outcome.killed_by) for outcome in run)
        seconds = sum(outcome.seconds for outcome in run)
        row = (area, len(mine), noticed, len(run) - noticed, len(mine) - len(run), f"{seconds:.0f}")
        lines.append(f"| {' | '.join(map(str, row))} |")
    lines += ["", "| area | fault | what it is | in | noticed by |", "|---|---|---|---|---|"]
    for fault in faults:
        found = known[fault.id].killed_by or f"**{SURVIVED}**" if fault.id in known else "not run"
        cells = (fault.area, fault.id, fault.why, f"`{fault.file.removeprefix('harness/')}`", _code(found))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _code(found: str) -> str:
    return f"`{found.removeprefix('tests/')}`" if found.startswith("tests/") else found


def _environment(tree: str) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "numpy", "pandas", "pytest"))
    return (
        f"By `python tests/mutations/run.py`; tree {tree} (harness/ and tests/), Python {platform.python_version()}, "
        f"{versions}, {platform.system()} on {platform.machine()}, {os.cpu_count()} cores. Seconds are those of a process "
        "of pytest in which torch was imported already; the machine may have done other things too."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="ID|AREA", help="these faults, or those of these areas"
    )
    parser.add_argument("--jobs", type=int, default=1, help="so many processes side by side")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of results.jsonl and README.md")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    results, faults = Results(asked.out / "results.jsonl"), load()
    tree = digest_of(ROOT)  # as it is now: the copies are made of it, whatever is written meanwhile
    try:
        wanted = chosen(faults, asked.only)
        plant_all(wanted, results, tree, jobs=max(asked.jobs, 1))
    except DoesNotApply as problem:
        print(problem, file=sys.stderr)
        return 2
    results.rewrite(faults)
    known = {fault.id: results.known[fault.id] for fault in faults if results.has(fault, tree)}
    (asked.out / "README.md").write_text(table(faults, known, tree), encoding="utf-8")
    survived = [fault.id for fault in wanted if not known[fault.id].killed_by]
    print(
        f"{len(wanted) - len(survived)} of {len(wanted)} faults were noticed; {', '.join(survived) or 'none'} survived"
    )
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
