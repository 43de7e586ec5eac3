"""harness as a user runs it: its own process, its own directory, and where wanted its own, altered, source."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]


MARK = "HARNESS_TEST_MARK"


SHELL = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from harness.cli import main
answers = sys.stdout
for line in sys.stdin:
    sys.argv = ["harness", *json.loads(line)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as exit:
            code = exit.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""
"""A process that performs one command line after another. A command's own process costs the import of pandas or, where it
measures, of torch in the server that workers are forked from: 2 and 5 seconds that say nothing about most commands."""


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

    @contextmanager
    def shell(self) -> Iterator[Shell]:
        """One process for several commands: for whatever is not about the beginning or the end of a process.

        What it has imported stays: a changed `source` needs a shell of its own.
        """
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", SHELL], cwd=self.home, env=self.environment(), **pipes) as process:
            yield Shell(process)

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


@dataclass
class Shell:
    """`User.run` without a process of its own; a traceback that no command caught ends it and shows in pytest's output."""

    process: subprocess.Popen[str]

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([*map(str, words)]), file=self.process.stdin, flush=True)
        return subprocess.CompletedProcess(words, *json.loads(self.process.stdout.readline()))
