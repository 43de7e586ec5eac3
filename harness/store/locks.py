"""Locks that a dead process cannot keep: one per run directory, one per device."""

from __future__ import annotations

import fcntl
import getpass
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import HarnessError


@contextmanager
def exclusive(path: Path, note: str, *, busy: str, remedy: str) -> Iterator[None]:
    """Hold `path` locked and write `note` into it. HarnessError `busy`, with the holder's note, when it is taken.

    flock goes with the process, however it dies; the file itself is left, since removing it would race.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 500, 0).decode(errors="replace").strip()
            raise HarnessError(f"{busy} ({holder})" if holder else busy, remedy=remedy) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()}, {note}\n".encode(), 0)
        yield
    finally:
        os.close(file)


@contextmanager
def run_lock(run: Path, remedy: str) -> Iterator[None]:
    """Hold the directory of a run: one process alone writes its journal."""
    busy = f"{str(run)!r} is being written by another process"
    with exclusive(run / "lock", "writing this run", busy=busy, remedy=remedy):
        yield


@contextmanager
def device_lock(device: str, note: str) -> Iterator[None]:
    """Hold one device of this machine, so that two runs do not spoil each other's timings."""
    name = re.sub(r"[^A-Za-z0-9]", "-", device)
    path = Path(tempfile.gettempdir()) / f"harness-{getpass.getuser()}" / f"{name}.lock"
    busy = f"another run is measuring on {device}"
    with exclusive(path, note, busy=busy, remedy="wait for it, or stop it; two runs at once spoil both"):
        yield
