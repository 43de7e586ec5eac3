"""Background load made on purpose: how much it takes, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from harness.execution.aa import background_load as module
from harness.execution.aa.background_load import BURST, background_load, generate


def children():
    return {process.pid for process in psutil.Process().children()}


def gone(pid, seconds=20.0):
    """Whether the process has ended within so many seconds; a zombie that nobody waited for counts as ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_bursts_and_rests_add_up_to_the_asked_share_of_the_time(share, monkeypatch):
    now, rested, bursts = [0.0], [], []

    def sleep(seconds):
        bursts.append(now[0] - sum(bursts) - sum(rested))
        rested.append(seconds)
        now[0] += seconds

    def ticking():
        now[0] += 0.01
        return now[0]

    monkeypatch.setattr(module.time, "perf_counter", ticking)
    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(module.os, "getppid", lambda: 1 if len(rested) < 2000 else 2)
    generate(share, seed=1, parent=1)
    assert len(rested) == 2000
    assert sum(bursts) / (sum(bursts) + sum(rested)) == pytest.approx(share, rel=0.05)
    assert BURST[0] <= min(bursts)
    assert max(bursts) <= BURST[1] + 0.03
    assert max(bursts) > 10 * min(bursts), "of all lengths, from shorter than a round to longer than a visit"


@pytest.mark.alone
def test_the_load_takes_about_what_was_asked_for_and_ends_with_the_block():
    before = children()
    began = time.monotonic()
    with background_load(0.9, seed=3) as load:
        (pid,) = children() - before
        assert load.used is None
        while time.monotonic() - began < 3.5:
            time.sleep(0.1)
    assert load.wanted == 0.9
    # on a busy machine it gets less than it wants, never more than one core
    assert 0.2 < load.used < 1.0
    assert not psutil.pid_exists(pid)


@pytest.mark.alone
def test_a_small_share_is_taken_in_bursts_with_long_rests():
    with background_load(0.05, seed=1) as load:  # a burst of 0.36 s, then a rest of 32 s
        time.sleep(2.0)
    assert 0 < load.used < 0.3


def test_without_a_share_nothing_is_started():
    before = children()
    with background_load(0.0) as load:
        assert children() == before
    assert (load.wanted, load.used) == (0.0, None)


def test_the_load_ends_when_the_block_raises():
    before, started = children(), []

    def interrupted():
        with background_load(0.5):
            started.extend(children() - before)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(started) == 1
    assert not psutil.pid_exists(started[0])


def test_a_load_that_was_killed_from_outside_is_no_failure():
    before = children()
    with background_load(0.5) as load:
        (pid,) = children() - before
        os.kill(pid, signal.SIGKILL)
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    assert load.used is None or 0 <= load.used <= 1  # of the moment that it lived
    assert not psutil.pid_exists(pid)


PARENT = """
import time
from harness.execution.aa.background_load import background_load
with background_load(0.9, seed=5):
    import psutil
    print(psutil.Process().children()[0].pid, flush=True)
    time.sleep(60)
"""


def test_the_load_dies_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    try:
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
        parent.wait()
        assert gone(pid)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
