"""Revisions of the harness side by side: each checked out into a directory, each with an environment that serves it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console

from harness.errors import HarnessError, UnknownName
from harness.records import Json, digest
from harness.store.locks import exclusive

WORKTREE = (".", "WORKTREE")
"""Names for the working tree as it is, uncommitted changes included."""

PREFIX = "harness-ab-"
"""What our directories are called, so that those of a killed run are known again."""

GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")
"""Set inside a git hook, where they would stand above the directory that we name."""


@dataclass(frozen=True)
class Revision:
    """A revision and the directory that holds its files. `dirty`: it is the working tree, with uncommitted changes."""

    ref: str
    commit: str
    subject: str
    dirty: bool
    root: Path

    def __str__(self) -> str:
        changes = ", with uncommitted changes" if self.dirty else ""
        return f"{self.ref} ({self.commit[:10]} {self.subject}{changes})"


@contextlib.contextmanager
def checked_out(refs: Sequence[str], repository: Path) -> Iterator[list[Revision]]:
    """Each of `refs` in a directory of its own, the working tree in its place; what was made is removed at the end.

    The same revision twice gives two directories: comparing them shows what is measured when nothing differs.
    """
    top = _top(repository)
    wanted = [_resolved(ref, top) for ref in refs]
    _clear_leftovers(top)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX))).resolve()
        stack.enter_context(_locked(folder))
        ready = []
        for number, revision in enumerate(wanted):
            if revision.ref not in WORKTREE:
                revision = replace(revision, root=folder / f"{number}-{revision.commit[:10]}")
                stack.callback(_remove, top, revision.root)  # first: an interrupted checkout is removed as well
                _git(top, "worktree", "add", "--detach", str(revision.root), revision.commit)
            _check_content(revision)
            ready.append(revision)
        yield ready


def _top(repository: Path) -> Path:
    done = _run_git(repository, "rev-parse", "--show-toplevel")
    if done.returncode == 0:
        return Path(done.stdout.strip())
    remedy = "run it inside a clone of the harness"
    if "dubious ownership" in done.stderr:
        remedy = f"trust it with 'git config --global --add safe.directory {repository.resolve()}'"
    raise HarnessError(f"{repository.resolve()}: git finds no working tree here: {_first_line(done)}", remedy=remedy)


def _resolved(ref: str, top: Path) -> Revision:
    """What `ref` stands for. `root` is the repository, until it is checked out elsewhere."""
    in_place = ref in WORKTREE
    done = _run_git(
        top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{'HEAD' if in_place else ref}^{{commit}}"
    )
    if done.returncode:
        raise _unknown(ref, top)
    commit = done.stdout.strip()
    subject = _git(top, "log", "-1", "--format=%s", commit)
    dirty = in_place and bool(_git(top, "status", "--porcelain"))
    return Revision(ref, commit, subject, dirty, top)


def _unknown(ref: str, top: Path) -> HarnessError:
    places = ("refs/heads", "refs/tags", "refs/remotes")
    names = _git(top, "for-each-ref", "--format=%(refname:short)", *places).splitlines()
    # a clone made by a CI service often has `main` as `origin/main` only
    near = [name for name in names if name.endswith(f"/{ref}")] or get_close_matches(ref, names)
    remedy = f"use {' or '.join(near)}" if near else "name a commit, a branch or a tag of this repository"
    problem = f"no revision is called {ref!r}"
    if _git(top, "rev-parse", "--is-shallow-repository") == "true":
        problem += ", in a clone without its history"
        remedy = f"fetch the history with 'git fetch --unshallow' (in CI: fetch-depth: 0), or {remedy}"
    return UnknownName(problem, remedy=remedy)


def _check_content(revision: Revision) -> None:
    if not (revision.root / "harness" / "__init__.py").is_file():
        raise HarnessError(
            f"{revision} has no package harness",
            remedy="run it inside a clone of the harness, and name a revision that has the package at its top",
        )


def _locked(folder: Path) -> contextlib.AbstractContextManager[None]:
    """The mark of a run that is alive: a dead one cannot keep it."""
    busy = f"{folder} is in use"
    return exclusive(folder / "lock", "comparing revisions", busy=busy, remedy="wait for the run that uses it")


def _clear_leftovers(top: Path) -> None:
    """Remove the worktrees of runs that were killed; those of living runs and the user's own stay."""
    lines = _git(top, "worktree", "list", "--porcelain").splitlines()
    places = [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]
    for folder in {place.parent for place in places if place.parent.name.startswith(PREFIX)}:
        with contextlib.suppress(HarnessError, OSError):  # alive, or another user's
            with _locked(folder):
                for place in places:
                    if place.parent == folder:
                        _remove(top, place)
            shutil.rmtree(folder)


def _remove(top: Path, place: Path) -> None:
    """Take a worktree away. By its name and without `worktree prune`, which would also forget the user's own ones that
    happen to be on a disk which is not there now. Forced twice: a checkout that was interrupted is still locked."""
    _run_git(top, "worktree", "remove", "--force", "--force", str(place), alone=True)


def _git(top: Path, *words: str) -> str:
    done = _run_git(top, *words)
    if done.returncode:
        raise HarnessError(
            f"'git {' '.join(words)}' failed: {_first_line(done)}",
            remedy=f"see what it says in {top}",
        )
    return done.stdout.strip()


def _run_git(top: Path, *words: str, alone: bool = False) -> subprocess.CompletedProcess[str]:
    """Run git without hooks and in English. `alone`: out of reach of the terminal's Ctrl-C."""
    environment = {name: value for name, value in os.environ.items() if name not in GIT_VARIABLES}
    try:
        return subprocess.run(
            ["git", "-C", str(top), "-c", f"core.hooksPath={os.devnull}", *words],
            env={**environment, "LC_ALL": "C", "LANGUAGE": ""},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=alone,
            check=False,
        )
    except FileNotFoundError:
        raise HarnessError("comparing revisions needs git, which is not installed", remedy="install git") from None


def _first_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith(("fatal:", "error:"))]
    return lines[0] if lines else f"it exited with {done.returncode}"


TESTING = "test"
"""The extra that only tests need: another pytest measures the same, and an environment is six gigabytes."""


def dependencies_agree(a: Path, b: Path) -> list[str]:
    """In words, how what `b` needs differs from what `a` needs; nothing means that one environment serves both."""
    before, after = _needs(a), _needs(b)
    lines = []
    for table, name in sorted({*before, *after}):
        old, new = before.get((table, name)), after.get((table, name))
        if old is None:
            lines.append(f"{table}: {new} was added")
        elif new is None:
            lines.append(f"{table}: {old} was removed")
        elif old != new:
            lines.append(f"{table}: {old} became {new}")
    return lines


def _needs(root: Path) -> dict[tuple[str, str], str]:
    """(table, distribution) -> its requirements without spaces."""
    project = _project(root)
    extras = {f"optional-dependencies.{extra}": v for extra, v in project.get("optional-dependencies", {}).items()}
    extras.pop(f"optional-dependencies.{TESTING}", None)
    found: dict[tuple[str, str], list[str]] = {}
    for table, requirements in {"dependencies": project.get("dependencies", []), **extras}.items():
        for requirement in requirements:
            text = re.sub(r"\s+", "", requirement)
            written = re.split(r"[^A-Za-z0-9._-]", text)[0]
            name = re.sub(r"[-_.]+", "-", written).lower()
            found.setdefault((table, name), []).append(name + text.removeprefix(written))
    if "requires-python" in project:
        found["requires-python", ""] = [re.sub(r"\s+", "", project["requires-python"])]
    return {key: " and ".join(sorted(texts)) for key, texts in found.items()}


def _project(root: Path) -> dict[str, Json]:
    path = root / "pyproject.toml"
    try:
        project: dict[str, Json] = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as problem:
        raise HarnessError(f"{path}: {problem}", remedy="choose a revision whose pyproject.toml can be read") from None
    return project


def environment_for(root: Path, base_python: str, cache: Path, console: Console) -> str:
    """The Python of an environment with the dependencies of the project in `root`, made when `cache` has none.

    The project itself is not installed: PYTHONPATH names the source that is measured.
    """
    project = _project(root)
    needed = sorted(project.get("dependencies", []))
    version = _run([base_python, "-VV"], f"{base_python} cannot be run", "name a Python that can")
    folder = cache / f"environment-{digest([version, needed, project.get('requires-python')])}"
    python = folder / "bin" / "python"
    busy = f"{folder} is being made by another process"
    with exclusive(folder.with_suffix(".lock"), "making an environment", busy=busy, remedy="wait for it"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)  # half of one
            text = f"making an environment with {len(needed)} dependencies of {root} in {folder}; this happens once"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
            _make_environment(folder, python, base_python, needed, project.get("requires-python", ""))
            (folder / "complete").touch()
    return str(python)


FITS = """
import platform, sys
from pip._vendor.packaging.specifiers import SpecifierSet
sys.exit(platform.python_version() not in SpecifierSet(sys.argv[1], prereleases=True))
"""


def _make_environment(folder: Path, python: Path, base_python: str, needed: Sequence[str], versions: str) -> None:
    remedy = f"see whether '{base_python} -m venv' works here (Debian: apt install python3-venv)"
    _run([base_python, "-m", "venv", str(folder)], "an environment cannot be made", remedy)
    problem = f"that revision needs Python {versions}, and {base_python} is another"
    _run([str(python), "-I", "-c", FITS, versions], problem, "run ab with a Python that both revisions allow")
    wanted = folder / "requirements.txt"
    wanted.write_text("".join(f"{line}\n" for line in needed), encoding="utf-8")
    # -I: what PYTHONPATH happens to hold is not installed there
    install = [str(python), "-I", "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "-r", str(wanted)]
    remedy = f"see whether the index can be reached, with '{' '.join(install)}'"
    _run(install, "the dependencies of that revision cannot be installed", remedy)


def _run(command: Sequence[str], problem: str, remedy: str) -> str:
    """A command's output. HarnessError `problem` with its last lines when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError as reason:
        raise HarnessError(f"{problem}: {reason}", remedy=remedy) from None
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise HarnessError(f"{problem}\n{last}".rstrip(), remedy=remedy)
    return done.stdout
