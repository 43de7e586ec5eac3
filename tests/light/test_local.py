"""Starting and ending worker processes from several threads, with a process that takes its time to start."""

from __future__ import annotations

import subprocess
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from harness.execution.local import LocalExecutor


class SlowToStart:
    """As multiprocessing's process objects, of one that is there only after `go`."""

    def __init__(self):
        self.starting, self.go = Event(), Event()
        self.real = None

    def start(self):
        self.starting.set()
        assert self.go.wait(10)
        self.real = subprocess.Popen(["sleep", "60"])

    @property
    def pid(self):
        return self.real.pid

    def is_alive(self):
        return self.real is not None and self.real.poll() is None

    def join(self, timeout=None):
        assert self.real is not None, "can only join a started process"
        self.real.wait(timeout)

    def close(self):
        pass


@pytest.fixture
def slow():
    process = SlowToStart()
    yield process
    if process.is_alive():
        process.real.kill()
        process.real.wait()


def test_what_is_stopped_while_another_thread_starts_it_ends_as_soon_as_it_is_there(slow):
    """Ctrl-C between the two used to end in an AssertionError, and left the process behind."""
    executor = LocalExecutor()
    executor._context = SimpleNamespace(Process=lambda **_: slow)
    failed: list[BaseException] = []

    def stop():
        try:
            executor.stop()
        except BaseException as problem:
            failed.append(problem)

    starter = Thread(target=executor._start, args=({}, SimpleNamespace(close=lambda: None), Path("output")))
    stopper = Thread(target=stop)
    starter.start()
    assert slow.starting.wait(10)
    stopper.start()
    stopper.join(0.2)
    assert stopper.is_alive(), "it waits for what is half started"
    slow.go.set()
    starter.join(10)
    stopper.join(10)
    assert failed == []
    assert not slow.is_alive()
