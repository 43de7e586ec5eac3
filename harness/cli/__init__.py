"""The command line: a thin shell. Commands that measure are in running.py, those that read in reading.py."""

from __future__ import annotations

import signal
import sys

from rich.console import Console

from harness.cli import reading, running  # noqa: F401, they put their commands into the app
from harness.cli.shared import INTERRUPTED, app
from harness.errors import HarnessError

__all__ = ["app", "main"]


def main() -> None:
    """The console script: HarnessError becomes a message and exit code 2 (5 when a baseline is missing)."""
    # a shell starts background commands with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except HarnessError as problem:
        Console(stderr=True).print(f"error: {problem}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(getattr(problem, "exit_code", 2))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # | head
        sys.stderr.close()
        sys.exit(1)
