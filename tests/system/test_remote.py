"""Another source tree's workers: its own code runs, its messages and replies pass, and nothing of it outlives anyone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from harness.errors import HarnessError
from harness.execution.ab.remote import PROTOCOL, RemoteExecutor, Stopped
from harness.execution.local import Death
from harness.machine.fingerprint import source_digest
from harness.planning import plan
from harness.records import RECORD_VERSION, Status, Task
from harness.suite import parse_suite
from harness.suite.source import Source

ROOT = Path(__file__).parents[2]
SUITE = """
axes: {{block: [{blocks}], backbone: layer, image_size: 14, batch_size: 2}}
metrics: [{metric}]
budget: {{rounds: 1, seconds: 0.05}}
"""
PRINTING = """

_perform = LocalExecutor.perform

def _loud(self, *args, **kwargs):
    print("a library's chatter"); os.write(1, b"and its C code's")
    return _perform(self, *args, **kwargs)

LocalExecutor.perform = _loud
"""
HANGING = """

def _hang(self, x_NCHW: Tensor) -> Tensor:
    import time
    time.sleep(600)

ACB.forward = _hang
"""


def task(metric, blocks="conv") -> Task:
    (wanted,) = plan(parse_suite(Source(SUITE.format(metric=metric, blocks=blocks), "test.yaml"), "test", ())).tasks
    return wanted


@pytest.fixture(scope="module")
def altered(tmp_path_factory) -> Path:
    """A copy of the harness that counts parameters its own way, prints where it should not, and hangs in one block."""
    root = tmp_path_factory.mktemp("altered")
    shutil.copytree(ROOT / "harness", root / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    counts = root / "harness" / "metrics" / "counts.py"
    honest = "sum(p.numel() for p in model.parameters())"
    assert counts.read_text().count(honest) == 1
    counts.write_text(counts.read_text().replace(honest, "4711"))
    for file, more in [
        ("execution/local.py", PRINTING),
        ("blocks/reparam/acb.py", HANGING),
        ("errors.py", "\nprint('early')\n"),
    ]:
        with (root / "harness" / file).open("a") as source:
            source.write(more)
    return root


@pytest.fixture(scope="module")
def remote(altered):
    with RemoteExecutor(altered) as executor:
        yield executor


def stations():
    return [p for p in psutil.Process().children() if "harness.execution.ab.server" in p.cmdline()]


def hang(executor, upon) -> Death | None:
    """Perform a task that never ends, and do `upon` when its worker has been at it for a moment."""
    endless = task("saved_memory", "acb")

    def emit(message):
        if "begin" in message:
            threading.Timer(0.5, upon).start()

    return executor.perform(endless, endless.key, "f", emit)


@pytest.mark.slow
def test_the_other_tree_s_own_code_is_what_runs(remote, altered):
    assert remote.probe(["cpu"])["devices"]["cpu"]["absent"] is None
    assert remote.hello["source"] not in ("", source_digest())
    assert Path(remote.hello["package"]) == altered / "harness"
    heard, wanted = [], task("params")
    assert remote.perform(wanted, "key", "f", heard.append) is None
    begin, record = heard
    assert begin == {"begin": [wanted.cells[0].id, "params"]}
    assert record["record"]["status"] == "ok"
    assert [reading["values"] for reading in record["record"]["readings"]] == [[4711], [4711]]
    assert (record["record"]["task"], record["record"]["fingerprint"]) == ("key", "f")


@pytest.mark.slow
def test_a_worker_waits_for_its_turns(remote):
    held, heard, wanted = 0.4, [], task("train_step", "conv, repvgg")

    def emit(message):
        heard.append(message)
        if "turn" not in message:
            return None
        if sum("turn" in one for one in heard) <= 3:
            time.sleep(held)
        return {"go": True}

    assert remote.perform(wanted, "key", "f", emit, lockstep=True) is None
    turns = [next(iter(message)) for message in heard if "turn" in message or "turn_done" in message]
    assert turns == ["turn", "turn_done"] * (len(turns) // 2)
    assert len(turns) >= 2 * (2 + 4), "two variants warm up and make two passes"
    records = [message["record"] for message in heard if "record" in message]
    assert [record["status"] for record in records] == ["ok", "ok"]
    assert min(record["seconds"] for record in records) > 3 * held, "the worker's clock says that it waited"


@pytest.mark.slow
def test_steps_are_slowed_where_it_is_asked_for(remote):
    wanted, heard = task("train_step", "conv, repvgg"), []
    slow = wanted.cells[1].id
    assert remote.perform(wanted, "key", "f", heard.append, slowed={slow: 0.5}) is None
    facts = {m["record"]["cell"]: m["record"]["readings"][0]["facts"] for m in heard if "record" in m}
    assert facts[slow]["slowed"] == 0.5
    assert "slowed" not in facts[wanted.cells[0].id]


@pytest.mark.slow
def test_a_worker_s_death_comes_through(remote):
    wanted = task("saved_memory", "acb")
    wanted = replace(wanted, budget=replace(wanted.budget, timeout=1))
    death = remote.perform(wanted, "key", "f", lambda message: None)
    assert death == Death(Status.TIMEOUT, "the task took longer than 1 s", death.output)


@pytest.mark.slow
def test_a_killed_station_is_a_death_and_the_next_task_has_a_new_one(remote):
    (station,) = stations()
    workers = station.children(recursive=True)
    death = hang(remote, station.kill)
    assert death.status is Status.KILLED
    assert "SIGKILL" in death.reason
    assert "chatter" in death.output
    assert "its C code's" in death.output
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    wanted, heard = task("params"), []
    assert remote.perform(wanted, wanted.key, "f", heard.append) is None
    assert len(heard) == 2


@pytest.mark.slow
def test_a_listener_that_raises_and_a_stop_from_elsewhere_end_the_station(remote):
    def refuse(message):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        remote.perform(task("params"), "key", "f", refuse)
    assert stations() == [], "in the middle of a task it is of no more use"
    with pytest.raises(Stopped):
        hang(remote, remote.stop)
    assert stations() == []


DRIVER = """
import json, sys, time
from pathlib import Path
from harness.execution.ab.remote import RemoteExecutor
from harness.records import Task
task = Task.from_json(json.loads(sys.argv[2]))
with RemoteExecutor(Path(sys.argv[1])) as executor:
    executor.perform(task, task.key, "f", lambda message: print("begun", flush=True))
"""


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_behind(user, altered):
    words = [sys.executable, "-c", DRIVER, str(altered), json.dumps(task("saved_memory", "acb").to_json())]
    driver = subprocess.Popen(words, env=user.environment(), cwd=user.home, stdout=subprocess.PIPE, text=True)
    assert driver.stdout.readline() == "begun\n"
    assert len(user.processes()) >= 4, "driver, station, its server, a worker that hangs"
    (station,) = psutil.Process(driver.pid).children()
    station.send_signal(signal.SIGINT)  # as Ctrl-C in a terminal does; the driver decides what comes of it
    time.sleep(0.5)
    assert station.is_running()
    assert station.status() != psutil.STATUS_ZOMBIE
    driver.kill()
    driver.communicate()
    assert user.wait_until_alone() == []
    assert list(user.home.glob("harness-*")) == [], "the worker's output is removed as well"


def fake(root: Path, station: str) -> Path:
    """A source tree that has a station and nothing else."""
    (root / "harness" / "execution").mkdir(parents=True)
    for folder in (root / "harness", root / "harness" / "execution"):
        (folder / "__init__.py").touch()
    (root / "harness" / "execution" / "station.py").write_text(station)
    return root


@pytest.mark.parametrize(
    ("station", "said"),
    [
        ("import nonsense", r"exited with 1\n(.|\n)*No module named 'nonsense'\n  try: see what 'PYTHONPATH=\S*/old "),
        ("import os; os.kill(os.getpid(), 9)", r"was ended by SIGKILL\n  try: "),
        ("""print('{"hello": {"protocol": 9}}')""", r"speaks protocol 9 (.|\n)*try: compare two revisions on the same"),
    ],
)
def test_a_station_that_does_not_serve_says_why(tmp_path, station, said):
    root = fake(tmp_path / "old", station)
    before = stations()
    with pytest.raises(HarnessError, match=said):
        RemoteExecutor(root).__enter__()
    assert stations() == before


def test_a_revision_without_a_station_is_too_old(tmp_path):
    root = fake(tmp_path / "old", "")
    (root / "harness" / "execution" / "station.py").unlink()
    with pytest.raises(HarnessError, match="too old to be measured by ab"):
        RemoteExecutor(root).__enter__()


def test_another_tree_s_harness_is_not_taken_for_the_one_that_was_meant(tmp_path):
    deaf = tmp_path / "python"
    deaf.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -P "$@"\n')
    deaf.chmod(0o755)
    with pytest.raises(HarnessError, match=rf"imports the one in {ROOT}/harness\n  try: use a Python that heeds"):
        RemoteExecutor(fake(tmp_path / "old", ""), str(deaf)).__enter__()
    with pytest.raises(HarnessError, match="cannot be run"):
        RemoteExecutor(tmp_path / "old", str(tmp_path / "none")).__enter__()


def test_the_tree_that_was_meant_comes_before_the_user_s_python_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # without the current directory
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    hello = f"{{'protocol': {PROTOCOL}, 'records': {RECORD_VERSION}, 'source': 'x', 'package': harness.__path__[0]}}"
    root = fake(tmp_path / "old", f"import json, harness\nprint(json.dumps({{'hello': {hello}}}))\n")
    with RemoteExecutor(root) as executor:
        assert executor.hello["package"] == str(root / "harness")


def test_a_source_that_changes_under_way_is_refused(tmp_path):
    shutil.copytree(ROOT / "harness", tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    before = set(stations())
    with RemoteExecutor(tmp_path) as executor:
        (station,) = set(stations()) - before
        station.kill()
        psutil.wait_procs([station], timeout=10)
        with (tmp_path / "harness" / "errors.py").open("a") as source:
            source.write("# a thought\n")
        with pytest.raises(HarnessError, match="was changed while it was being measured"):
            executor.probe(["cpu"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    checkpointing: bool = False\n", "    checkpointing: bool = False\n    humidity: int = 1\n"),
        ("    checkpointing: bool = False\n", ""),
    ],
    ids=["knows more", "knows less"],
)
def test_a_task_that_means_something_else_there_is_refused(tmp_path, old, new):
    shutil.copytree(ROOT / "harness", tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    records = tmp_path / "harness" / "records.py"
    assert records.read_text().count(old) == 1
    records.write_text(records.read_text().replace(old, new))
    with (
        RemoteExecutor(tmp_path) as executor,
        pytest.raises(HarnessError, match=r"does not understand this task (.|\n)*try: compare two revisions"),
    ):
        executor.perform(task("params"), "key", "f", lambda message: None)


def test_a_station_ends_when_it_is_told_to():
    station = subprocess.Popen(
        [sys.executable, "-m", "harness.execution.ab.server"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert json.loads(station.stdout.readline())["hello"]["protocol"] == PROTOCOL
    station.stdin.write(b'{"stop": true}\n')
    station.stdin.flush()
    assert station.wait(10) == 0
    assert (station.stdout.read(), station.stderr.read()) == (b"", b"")
    for pipe in (station.stdin, station.stdout, station.stderr):
        pipe.close()
