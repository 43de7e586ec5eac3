"""`harness ab` as a pull request would use it: two commits of a repository, a verdict for every reading."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]

SUITE = """
axes:
  block: [conv, repvgg, acb]
  backbone: {layer: {c_in: 16, c_out: 16}}
  batch_size: 4
  image_size: 14
metrics: [params, fused_output, train_step]
budget: {rounds: 5, seconds: 0.2, precision: null}
"""

FORWARD = "        y_NCHW: Tensor = self.after(self.branches(x_NCHW))\n"
IDLE = f"        for _ in range(400):\n            x_NCHW = x_NCHW + 0.0\n{FORWARD}"
"""RepVGG does work for nothing: the same output, later."""


def git(home: Path, *words: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *settings, *words], cwd=home, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(resident):
    """Two commits: as it is, and with a slower RepVGG. The second is checked out."""
    home = resident.home
    shutil.copytree(ROOT / "harness", home / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", home)
    resident.suite(SUITE)
    git(home, "init", "-q", "-b", "main")
    git(home, "add", "harness", "pyproject.toml")
    git(home, "commit", "-qm", "as it is")
    block = home / "harness" / "blocks" / "reparam" / "repvgg.py"
    assert block.read_text().count(FORWARD) == 1
    block.write_text(block.read_text().replace(FORWARD, IDLE))
    git(home, "commit", "-qam", "a slower RepVGG")
    return resident


@pytest.fixture(scope="module")
def compared(repository):
    done = repository.run(
        "ab", "HEAD~1", "HEAD", "--suite", "suite.yaml", "--out", "both", "--format", "json", timeout=400
    )
    return done, json.loads(done.stdout) if done.stdout.startswith("{") else None


@pytest.mark.slow
def test_the_changed_block_is_found_and_nothing_else(compared):
    done, check = compared
    assert done.returncode == 1, done.stderr[-2000:]
    regressed = [(row["label"], row["metric"]) for row in check["rows"] if row["verdict"] == "REGRESSED"]
    assert regressed == [("repvgg", "train_step")]
    (row,) = [row for row in check["rows"] if row["verdict"] == "REGRESSED"]
    assert row["ratio"] > 1.2
    assert row["low"] > 1.03
    assert row["rounds"] == 5
    assert row["command"] == f"harness ab 'HEAD~1' HEAD --suite suite.yaml --only {row['cell']}"
    exact = [
        row["verdict"] for row in check["rows"] if row["metric"] in ("params", "fused_output_train", "fused_output")
    ]
    assert exact
    assert set(exact) == {"SAME"}


@pytest.mark.slow
def test_each_side_is_an_ordinary_run_of_its_own_source(compared, repository):
    runs = [json.loads((repository.home / "both" / side / "run.json").read_text()) for side in ("base", "head")]
    sources = [run["fingerprint"]["source"] for run in runs]
    assert sources[0] != sources[1]
    shown = repository.run("report", "both/head")
    assert shown.returncode == 0
    assert "repvgg" in shown.stdout
    looks = [record for record in repository.records(repository.home / "both" / "base") if record["kind"] == "look"]
    assert [look["facts"]["rule"] for look in looks] == ["rounds"]


@pytest.mark.slow
def test_nothing_is_left_behind_and_the_same_command_has_nothing_more_to_do(compared, repository):
    assert git(repository.home, "worktree", "list", "--porcelain").count("worktree ") == 1
    assert repository.wait_until_alone() == []
    before = len(repository.records(repository.home / "both" / "base"))
    again = repository.run("ab", "HEAD~1", "HEAD", "--suite", "suite.yaml", "--out", "both", "--format", "github")
    assert again.returncode == 1
    assert "::error" in again.stdout
    assert len(repository.records(repository.home / "both" / "base")) == before


def test_a_revision_that_is_none_is_an_error_before_anything_is_measured(repository):
    done = repository.run("ab", "mian", "HEAD", "--suite", "suite.yaml", "--out", "never")
    assert done.returncode == 2
    assert "main" in done.stderr
    assert not (repository.home / "never").exists()
