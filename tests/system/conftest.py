"""harness as a user runs it: its own process, its own directory, and where wanted its own, altered, source."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
MARK = "HARNESS_TEST_MARK"


@dataclass
class User:
    """Someone at a shell in an empty directory; `source` is where their harness comes from."""

    home: Path
    source: Path = ROOT
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def suite(self, text: str, name: str = "suite.yaml") -> Path:
        path = self.home / name
        path.write_text(dedent(text))
        return path

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(self.source),
            "TMPDIR": str(self.home),  # locks of its own: tests may run beside a real run
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
            MARK: self.mark,
        }

    def start(self, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "harness", *map(str, words)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.home, env=self.environment(), **pipes)

    def run(self, *words: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def records(self, run: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]

    def processes(self) -> list[psutil.Process]:
        """Every living process that this user's commands started, however it was orphaned since."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def wait_until_alone(self, seconds: float = 15) -> list[psutil.Process]:
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    someone = User(tmp_path)
    yield someone
    for process in someone.processes():
        process.send_signal(signal.SIGKILL)


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
