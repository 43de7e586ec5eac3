"""harness as a user runs it: its own process, its own directory, and where wanted its own, altered, source."""

from __future__ import annotations

import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line_user import ROOT, Shell, User


def at_home(home: Path) -> Iterator[User]:
    someone = User(home)
    yield someone
    for process in someone.processes():
        process.send_signal(signal.SIGKILL)


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    yield from at_home(tmp_path)


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """One user, and one home, for all tests of a module."""
    yield from at_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def shell(resident: User) -> Iterator[Shell]:
    """One process for all tests of a module that need none of their own."""
    with resident.shell() as one:
        yield one


@pytest.fixture
def mutated(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the source with (file, old text, new text) replaced: the change whose effect is tested."""

    def make(*changes: tuple[str, str, str]) -> Path:
        source = tmp_path / f"source-{uuid.uuid4().hex[:6]}"
        shutil.copytree(ROOT / "harness", source / "harness", ignore=shutil.ignore_patterns("__pycache__"))
        for file, old, new in changes:
            path = source / "harness" / file
            text = path.read_text()
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
            path.write_text(text.replace(old, new))
        return source

    return make
