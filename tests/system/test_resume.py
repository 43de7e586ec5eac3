"""Killed half-way, stopped with Ctrl-C, run twice at once: nothing measured is lost, nothing is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

SUITE = """
axes: {block: [conv, repvgg, acb], backbone: layer, image_size: 14, batch_size: 2}
metrics: [params, macs, train_step]
budget: {rounds: 12, seconds: 0.3}
"""


def wait_for_lines(user, count, run="run"):
    journal = user.home / run / "journal.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if journal.exists() and len(journal.read_text().splitlines()) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("the run does not get on")


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_no_process_and_goes_on_without_repeating(user, blow):
    suite = user.suite(SUITE)
    process = user.start("run", suite, "--out", "run")
    wait_for_lines(user, 10)
    process.send_signal(blow)
    _, err = process.communicate(timeout=30)
    assert user.wait_until_alone() == []
    if blow is not signal.SIGKILL:
        assert process.returncode == 130
        assert "same command goes on" in err
    before = user.records(user.home / "run")
    with (user.home / "run" / "journal.jsonl").open("a") as journal:
        journal.write('{"torn": ')  # as a power cut leaves it
    done = user.run("run", suite, "--out", "run")
    assert done.returncode == 0, done.stderr
    lines = (user.home / "run" / "journal.jsonl").read_text().splitlines()
    after = [json.loads(line) for line in lines if not line.startswith('{"torn"')]
    assert after[: len(before)] == before
    keys = [(r["task"], r["cell"], r["metric"]) for r in after]
    assert len(keys) == len(set(keys)) == 3 * 2 + 12 * 3


@pytest.mark.slow
def test_a_finished_run_is_found_again_only_where_it_is_named(user):
    suite = user.suite(SUITE.replace("12", "1"))
    first = user.run("run", suite)
    assert first.returncode == 0, first.stderr
    assert "(0 reused)" in first.stdout.splitlines()[-1]
    second = user.run("run", suite, "--max-time", "90s")
    assert "(0 reused)" in second.stdout.splitlines()[-1], "finished runs are not gone on with"
    runs = sorted((user.home / "results" / "runs" / "suite").iterdir())
    assert len(runs) == 2
    again = user.run("run", suite, "--out", runs[0])
    assert "3 cells measured (3 reused)" in again.stdout.splitlines()[-1]


@pytest.mark.slow
def test_an_unfinished_run_is_gone_on_with_unless_new(user):
    suite = user.suite(SUITE)
    assert user.run("run", suite, "--max-time", "9").returncode == 130
    (unfinished,) = (user.home / "results" / "runs" / "suite").iterdir()
    done = user.run("run", suite)
    assert done.returncode == 0
    assert str(unfinished.name) in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_changed_code_is_another_run(user, mutated):
    suite = user.suite(SUITE.replace("12", "1"))
    assert user.run("run", suite, "--out", "run").returncode == 0
    user.source = mutated(("blocks/acb.py", "from __future__", "# a changed line\nfrom __future__"))
    refused = user.run("run", suite, "--out", "run")
    assert refused.returncode == 2
    assert "source changed" in refused.stderr
    assert "--new" in refused.stderr
    moved = user.run("run", suite, "--out", "run", "--new")
    assert moved.returncode == 0
    assert len(list(user.home.glob("run-before-*/journal.jsonl"))) == 1, "the old run is moved, not deleted"


@pytest.mark.slow
def test_two_runs_do_not_share_a_device(user):
    suite = user.suite(SUITE)
    first = user.start("run", suite, "--out", "first")
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
    suite = user.suite(SUITE.replace("12", "1"))
    script = user.home / "script.py"
    script.write_text(f"import harness\nrun = harness.run({str(suite)!r}, out='run')\nprint(len(run.frame()))\n")
    done = subprocess.run(
        [sys.executable, script], cwd=user.home, env=user.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3
