"""Revisions side by side: what is checked out, what is left behind, and which environment serves them."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from harness.errors import HarnessError
from harness.execution.ab.worktrees import checked_out, dependencies_agree, environment_for

ROOT = Path(__file__).parents[2]
ME = ("-c", "user.name=me", "-c", "user.email=me@here", "-c", "commit.gpgsign=false")


def git(where, *words):
    done = subprocess.run(["git", "-C", where, *ME, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(repository, text, subject):
    (repository / "harness").mkdir(exist_ok=True)
    (repository / "harness" / "__init__.py").write_text(text)
    git(repository, "add", ".")
    git(repository, "commit", "-m", subject)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Two commits, `old` (a tag) and `main`; its worktrees go to a directory of the test's own."""
    place, temporary = tmp_path / "repository", tmp_path / "temporary"
    place.mkdir()
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    git(place, "init", "-q", "-b", "main")
    commit(place, "SPEED = 1\n", "slow")
    git(place, "tag", "old")
    commit(place, "SPEED = 2\n", "faster")
    return place


def source(revision):
    return (revision.root / "harness" / "__init__.py").read_text()


def nothing_left(repository):
    return len(git(repository, "worktree", "list").splitlines()) == 1 and not any(
        (repository.parent / "temporary").iterdir()
    )


def test_each_revision_has_its_own_files_and_leaves_none(repository):
    (repository / "harness" / "__init__.py").write_text("SPEED = 3\n")
    with checked_out(["old", "HEAD"], repository / "harness") as (old, head):
        assert (source(old), source(head)) == ("SPEED = 1\n", "SPEED = 2\n")
        assert (old.subject, head.subject) == ("slow", "faster")
        assert head.commit == git(repository, "rev-parse", "main")
        assert not head.dirty
        assert git(head.root, "status", "--porcelain", "--branch") == "## HEAD (no branch)", "detached"
    assert nothing_left(repository)


def test_a_revision_against_itself_gets_two_directories(repository):
    with checked_out(["main", "HEAD"], repository) as (a, b):
        assert a.commit == b.commit
        assert a.root != b.root
        assert source(a) == source(b)
    assert nothing_left(repository)


@pytest.mark.parametrize("name", [".", "WORKTREE"])
def test_the_working_tree_is_used_in_place_with_its_changes(repository, name):
    with checked_out([name], repository) as (clean,):
        assert not clean.dirty
    (repository / "harness" / "new.py").touch()
    with checked_out(["main", name], repository) as (_, tree):
        assert tree.root == repository
        assert tree.dirty
        assert "uncommitted changes" in str(tree)
    assert (repository / "harness" / "new.py").exists()
    assert nothing_left(repository)


def _stray_file_and_problem(root, problem):
    (root / "untracked").touch()
    raise problem


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ValueError])
def test_worktrees_are_removed_whatever_happens(repository, problem):
    with pytest.raises(problem), checked_out(["old", "main"], repository) as (old, _):
        _stray_file_and_problem(old.root, problem)
    assert nothing_left(repository)


def test_an_interrupted_checkout_is_removed(repository, monkeypatch):
    from harness.execution.ab import worktrees

    checking = worktrees._check_content

    def interrupted(revision):
        checking(revision)
        git(repository, "worktree", "lock", revision.root)  # as git does while it checks out
        raise KeyboardInterrupt

    monkeypatch.setattr(worktrees, "_check_content", interrupted)
    with pytest.raises(KeyboardInterrupt), checked_out(["old"], repository):
        pass
    assert nothing_left(repository)


def test_git_hooks_and_a_hook_s_environment_do_no_harm(repository, monkeypatch):
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_DIR", str(repository / "elsewhere"))
    with checked_out(["old"], repository) as (old,):
        assert source(old) == "SPEED = 1\n"
    monkeypatch.delenv("GIT_DIR")
    assert nothing_left(repository)


KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
from harness.execution.ab.worktrees import checked_out
tempfile.tempdir = sys.argv[2]
with checked_out(["old", "main"], Path(sys.argv[1])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("swept", [False, True], ids=["files there", "files swept from /tmp"])
def test_what_a_killed_run_left_is_removed_by_the_next_one(repository, swept):
    temporary = repository.parent / "temporary"
    command = [sys.executable, "-c", KILLED, str(repository), str(temporary)]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(git(repository, "worktree", "list").splitlines()) == 3
    (left,) = temporary.iterdir()
    if swept:
        left.rename(repository.parent / "swept")
    with checked_out(["main"], repository) as (main,):
        assert not left.exists()
        assert source(main) == "SPEED = 2\n"
        assert len(git(repository, "worktree", "list").splitlines()) == 2
    assert nothing_left(repository)


def test_living_runs_and_the_user_s_own_worktrees_are_left_alone(repository):
    own = repository.parent / "own"
    git(repository, "worktree", "add", "--detach", own, "old")
    own.rename(repository.parent / "unplugged")  # a disk that is not there now
    with checked_out(["old"], repository) as (first,):
        with checked_out(["main"], repository):
            pass
        assert source(first) == "SPEED = 1\n"
        assert str(first.root) in git(repository, "worktree", "list")
    assert str(own) in git(repository, "worktree", "list")


def test_an_unknown_revision_names_the_nearest(repository):
    git(repository, "branch", "feature/fold")
    git(repository, "update-ref", "refs/remotes/origin/develop", "old")
    for wrong, right in [("mian", "main"), ("feature/flod", "feature/fold"), ("develop", "origin/develop")]:
        with pytest.raises(HarnessError, match=rf"no revision is called '{wrong}'\n  try: use {right}$"):
            checked_out(["main", wrong], repository).__enter__()
    for wrong in ("--help", "0" * 40, "main:harness"):
        with pytest.raises(HarnessError, match="name a commit, a branch or a tag"):
            checked_out([wrong], repository).__enter__()
    assert nothing_left(repository)


def test_a_shallow_clone_says_how_to_get_the_history(repository):
    clone = repository.parent / "clone"
    git(repository, "clone", "-q", "--depth", "1", f"file://{repository}", clone)
    with pytest.raises(HarnessError, match=r"git fetch --unshallow.*fetch-depth: 0"):
        checked_out([git(repository, "rev-parse", "old")], clone).__enter__()


def test_a_revision_without_the_harness_is_refused(repository):
    git(repository, "rm", "-rq", "harness")
    git(repository, "commit", "-m", "gone")
    for ref in ("HEAD", "."):
        with pytest.raises(HarnessError, match=r"gone\) has no package harness\n  try: .*clone of the harness"):
            checked_out(["old", ref], repository).__enter__()
    assert nothing_left(repository)


def test_no_repository_and_no_git_are_said(repository, monkeypatch):
    with pytest.raises(HarnessError, match=r"not a git repository.*\n  try: run it inside a clone"):
        checked_out(["HEAD"], repository.parent).__enter__()
    monkeypatch.setenv("PATH", str(repository))
    with pytest.raises(HarnessError, match="install git"):
        checked_out(["HEAD"], repository).__enter__()


def project(place: Path, text: str) -> Path:
    place.mkdir(exist_ok=True)
    (place / "pyproject.toml").write_text(f'[project]\nname = "x"\n{text}')
    return place


def test_dependencies_are_compared_by_what_they_mean(tmp_path):
    a = project(
        tmp_path / "a",
        """requires-python = ">=3.11"
dependencies = ["torch>=2.9, <3", "Ruamel_yaml", "old"]
[project.optional-dependencies]
test = ["pytest"]
onnx = ["onnx>=1"]
""",
    )
    b = project(
        tmp_path / "b",
        """requires-python = ">= 3.12"
dependencies = ["ruamel-YAML", "torch>=2.10,<3"]
[project.optional-dependencies]
test = ["pytest>=9"]
onnx = ["onnx>=1", "onnxruntime"]
""",
    )
    assert dependencies_agree(a, a) == []
    assert dependencies_agree(a, b) == [
        "dependencies: old was removed",
        "dependencies: torch>=2.9,<3 became torch>=2.10,<3",
        "optional-dependencies.onnx: onnxruntime was added",
        "requires-python: >=3.11 became >=3.12",
    ]
    (b / "pyproject.toml").unlink()
    assert "requires-python: >=3.11 was removed" in dependencies_agree(a, b)
    (b / "pyproject.toml").write_text("[project")
    with pytest.raises(HarnessError, match=r"pyproject.toml: .*\n  try: choose a revision"):
        dependencies_agree(a, b)


def wheel(place: Path) -> None:
    """A distribution that can be installed without an index."""
    with zipfile.ZipFile(place / "trifle-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("trifle.py", "TASTE = 'sweet'\n")
        archive.writestr("trifle-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: trifle\nVersion: 1.0\n")
        archive.writestr("trifle-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("trifle-1.0.dist-info/RECORD", "trifle.py,,\ntrifle-1.0.dist-info/RECORD,,\n")


@pytest.mark.slow
def test_an_environment_is_made_once_and_again_when_that_failed(tmp_path):
    base = project(tmp_path / "base", f'dependencies = ["trifle @ file://{tmp_path}/trifle-1.0-py3-none-any.whl"]\n')
    told = io.StringIO()
    console = Console(file=told)
    with pytest.raises(HarnessError, match=r"cannot be installed\n(.|\n)*trifle(.|\n)*try: see whether the index"):
        environment_for(base, sys.executable, tmp_path / "cache", console)
    wheel(tmp_path)
    made = environment_for(base, sys.executable, tmp_path / "cache", console)
    taste = [made, "-c", "import trifle; print(trifle.TASTE)"]
    assert subprocess.run(taste, capture_output=True, text=True, check=True).stdout == "sweet\n"
    assert told.getvalue().count("this happens once") == 2
    assert environment_for(base, sys.executable, tmp_path / "cache", console) == made
    assert told.getvalue().count("this happens once") == 2


@pytest.mark.slow
def test_a_python_that_the_revision_does_not_allow_is_refused(tmp_path):
    base = project(tmp_path / "base", 'requires-python = "<3.5"\n')
    with pytest.raises(HarnessError, match=r"needs Python <3.5.*\n  try: run ab with a Python that both"):
        environment_for(base, sys.executable, tmp_path / "cache", Console(file=io.StringIO()))
    with pytest.raises(HarnessError, match="cannot be run"):
        environment_for(base, str(tmp_path / "python"), tmp_path / "cache", Console(file=io.StringIO()))
