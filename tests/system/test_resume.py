"""Killed half-way, stopped with Ctrl-C, run twice at once: nothing measured is lost, nothing is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

SUITE = """
axes: {block: [conv, repvgg, acb], backbone: layer, image_size: 14, batch_size: 2}
metrics: [params, macs, train_step]
budget: {rounds: 10, seconds: 0.2, precision: null}
"""
SHORT = SUITE.replace("0.2", "0.02")


def wait_for_lines(user, count, run="run"):
    journal = user.home / run / "journal.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if journal.exists() and len(journal.read_text().splitlines()) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("the run does not get on")


def complete(records):
    """Whether everything that SUITE asks for is there, and nothing twice."""
    keys = [(r["task"], r["cell"], r["metric"]) for r in records]
    kinds = Counter(r["kind"] for r in records)
    return len(keys) == len(set(keys)) and (kinds["cell"], kinds["visit"]) == (3 * 2, 10 * 3)


TORN = '{"torn": '
"""As a power cut leaves it."""


def without_torn(lines):
    return [json.loads(line) for line in lines if not line.startswith(TORN)]


@pytest.mark.slow
def test_a_stopped_run_leaves_no_process_and_goes_on_without_repeating(user):
    """One run is dealt three blows, one after the other, so that each also meets a run that went on with another."""
    suite = user.suite(SUITE)
    journal = user.home / "run" / "journal.jsonl"
    before: list[dict] = []
    stood = 6
    for blow in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        process = user.start("run", suite, "--out", "run")
        wait_for_lines(user, stood + 4)  # a round, and the beginning of the next
        process.send_signal(blow)
        _, err = process.communicate(timeout=30)
        assert user.wait_until_alone() == [], blow
        if blow is not signal.SIGKILL:
            assert process.returncode == 130, blow
            assert "same command goes on" in err
        after = without_torn(journal.read_text().splitlines())
        assert len(before) < len(after), blow
        assert not complete(after), f"{blow} came too late to stop anything"
        assert after[: len(before)] == before, blow
        before = after
        with journal.open("a") as file:
            file.write(TORN)
        stood = len(journal.read_text().splitlines())
    done = user.run("run", suite, "--out", "run")
    assert done.returncode == 0, done.stderr
    after = without_torn(journal.read_text().splitlines())
    assert after[: len(before)] == before
    assert complete(after)


@pytest.mark.slow
def test_which_run_is_gone_on_with(user, mutated):
    """One story in one place: the unfinished one of the same work; a finished one where it is named; other work never."""
    suite, place = user.suite(SHORT), user.home / "results" / "runs" / "suite"
    with user.shell() as shell:
        assert shell.run("run", suite, "--max-time", "1").returncode == 130
        (first,) = place.iterdir()
        done = shell.run("run", suite)
        assert done.returncode == 0
        assert first.name in done.stdout.splitlines()[-1], "the unfinished run is gone on with"

        second = shell.run("run", suite, "--max-time", "1s")  # it need not come far
        assert "(0 reused)" in second.stdout.splitlines()[-1], "finished runs are not gone on with"
        assert len(list(place.iterdir())) == 2
        again = shell.run("run", suite, "--out", first)
        assert "3 cells measured (3 reused)" in again.stdout.splitlines()[-1]

    user.source = mutated(("blocks/reparam/acb.py", "from __future__", "# a changed line\nfrom __future__"))
    with user.shell() as shell:
        refused = shell.run("run", suite, "--out", first)
        assert refused.returncode == 2
        assert "source changed" in refused.stderr
        assert "--new" in refused.stderr
        moved = shell.run("run", suite, "--out", first, "--new", "--max-time", "1s")
        assert "(0 reused)" in moved.stdout.splitlines()[-1]
    (aside,) = place.glob(f"{first.name}-before-*")
    assert complete(user.records(aside)), "the old run is moved, not deleted"


@pytest.mark.slow
def test_two_runs_do_not_share_a_device(user):
    suite = user.suite(SUITE)
    first = user.start("run", suite, "--out", "first", "--rounds", "500")  # it cannot be done before the second begins
    wait_for_lines(user, 1, "first")
    second = user.run("run", suite, "--out", "second")
    assert second.returncode == 2
    assert "another run is measuring on cpu" in second.stderr
    assert f"process {first.pid}" in second.stderr
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert user.wait_until_alone() == []


@pytest.mark.slow
def test_a_script_without_a_main_guard_can_call_run(user):
    suite = user.suite(SHORT.replace("10", "1"))
    script = user.home / "script.py"
    script.write_text(f"import harness\nrun = harness.run({str(suite)!r}, out='run')\nprint(len(run.frame()))\n")
    done = subprocess.run(
        [sys.executable, script], cwd=user.home, env=user.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3
