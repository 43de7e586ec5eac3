"""The planted faults fit the code of today; a handful of them is planted here, all of them by run.py."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from catalogue import AREAS, FAULTS, ROOT, DoesNotApply, Fault, chosen, load
from run import Copy, Outcome, Results, digest_of, table

ALL = load()

HANDFUL = (
    "interval-of-n-less-one", "oldest-record-counts", "better-is-worse", "mebibytes-of-a-million", "order-not-rotated",
    "suspicious-samples-misnumbered",
)  # fmt: skip
"""Of several areas, and of those whose tests need no torch."""


@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.id)
def test_a_fault_is_a_small_change_of_the_code_of_today(fault):
    planted = fault.planted()
    assert planted != (ROOT / fault.file).read_text(encoding="utf-8")
    compile(planted, fault.file, "exec")
    assert fault.file.startswith("harness/")
    assert fault.why
    assert fault.tests
    assert not fault.lacking(), "tests were renamed or taken away: name those that notice it now"


def test_there_are_enough_faults_of_every_kind():
    assert len(ALL) >= 66
    assert {path.stem for path in FAULTS.iterdir()} == set(AREAS)
    assert min(Counter(fault.area for fault in ALL).values()) >= 5
    assert max(Counter(fault.id for fault in ALL).values()) == 1
    assert max(Counter((fault.file, fault.old, fault.new) for fault in ALL).values()) == 1
    assert set(HANDFUL) <= {fault.id for fault in ALL}


def made(**changes) -> Fault:
    entry = {"id": "one", "area": "suite", "file": "code.py", "old": "a + b", "new": "a - b", "why": "a sign"}
    return Fault(**{**entry, "tests": ("test_code.py",), **changes})


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (made(file="gone.py"), "there is no gone.py"),
        (made(old="a * b"), "0 times"),
        (made(old=" "), "4 times"),
        (made(new="a + b"), "changes nothing"),
    ],
)
def test_what_does_not_apply_says_so(tmp_path, fault, says):
    (tmp_path / "code.py").write_text("c = a + b\n")
    with pytest.raises(DoesNotApply, match=says):
        fault.planted(tmp_path)


def test_faults_are_chosen_by_name_and_by_area():
    faults = [made(), made(id="two", area="report")]
    assert [fault.id for fault in chosen(faults, [])] == ["one", "two"]
    assert [fault.id for fault in chosen(faults, ["report"])] == ["two"]
    assert [fault.id for fault in chosen(faults, ["one"])] == ["one"]
    with pytest.raises(DoesNotApply, match="three"):
        chosen(faults, ["three"])


def test_what_is_known_of_the_same_fault_in_the_same_tree_is_not_asked_again(tmp_path):
    path = tmp_path / "results.jsonl"
    Results(path).add(Outcome("one", made().key, "tree", "tests/test_code.py::test_it[a b]", 1.5))
    again = Results(path)
    assert again.has(made(), "tree")
    assert not again.has(made(), "another tree")
    assert not again.has(made(new="b - a"), "tree")
    text = table([made(), made(id="two")], again.known, "tree")
    assert "| suite | 2 | 1 | 0 | 1 | 2 |" in text
    assert "| suite | two | a sign | `code.py` | not run |" in text
    assert "SURVIVED" not in text
    again.add(Outcome("two", made(id="two").key, "tree", "", 2.0))
    assert "**SURVIVED**" in table([made(), made(id="two")], again.known, "tree")


def small_tree(folder):
    """A repository with one function and a test for it."""
    for name in ("harness", "tests"):
        (folder / name).mkdir()
    (folder / "harness" / "__init__.py").write_text("")
    (folder / "harness" / "sums.py").write_text("def total(a, b):\n    return a + b\n")
    test = "from harness.sums import total\n\n\ndef test_two():\n    assert total(1, {}) == {}\n"
    (folder / "tests" / "test_sums.py").write_text(test.format(2, 3))
    (folder / "tests" / "test_zero.py").write_text(test.format(0, 1))
    (folder / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["alone"]\n')
    return folder


def test_a_fault_is_noticed_or_survives_and_the_file_is_put_back(tmp_path):
    for name in ("there", "copy"):
        (tmp_path / name).mkdir()
    root = small_tree(tmp_path / "there")
    before = digest_of(root)
    # a process has one forkserver, and with another test before this one it has the harness loaded
    copy = Copy(root, tmp_path / "copy", multiprocessing.get_context("spawn"))
    noticed = made(file="harness/sums.py", tests=("tests/test_sums.py",))
    assert copy.outcome(noticed, before).killed_by == "tests/test_sums.py::test_two"
    assert copy.outcome(made(file="harness/sums.py", tests=("tests/test_zero.py",)), before).killed_by == ""
    assert copy.first_failure(noticed.tests, 60) == ""
    with pytest.raises(DoesNotApply, match="pytest cannot run"):
        copy.outcome(made(file="harness/sums.py", tests=("tests/test_sums.py::test_three",)), before)
    assert digest_of(root) == before
    (root / "harness" / "sums.py").write_text("")
    assert digest_of(root) != before


@pytest.mark.slow
def test_a_handful_of_faults_is_noticed(tmp_path):
    """So that CI tells when a test has lost its edge; run.py plants them all."""
    command = [sys.executable, str(FAULTS.parent / "run.py"), "--only", *HANDFUL, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(HANDFUL)} of {len(HANDFUL)} faults were noticed" in done.stdout


def test_the_catalogue_is_data_that_can_be_read():
    for path in FAULTS.iterdir():
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
            assert set(entry) == {"id", "file", "old", "new", "why", "tests"}, path
