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
from harness.execution.executor import Death
from harness.machine.fingerprint import source_digest
from harness.planning import plan
from harness.records import RECORD_VERSION, Status, Task
from harness.suite import parse_suite
from harness.suite.source import Source
from harness.worker.messages import Order

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


def servers():
    return [p for p in psutil.Process().children() if "harness.execution.ab.server" in p.cmdline()]


def hang(executor, upon) -> Death | None:
    """Perform a task that never ends, and do `upon` when its worker has been at it for a moment."""
    endless = task("saved_memory", "acb")

    def emit(message):
        if "begin" in message:
            threading.Timer(0.5, upon).start()

    return executor.perform(Order(endless, endless.key, "f"), emit)


@pytest.mark.slow
def test_the_other_tree_s_own_code_is_what_runs(remote, altered):
    assert remote.probe(["cpu"])["devices"]["cpu"]["absent"] is None
    assert remote.hello["source"] not in ("", source_digest())
    assert Path(remote.hello["package"]) == altered / "harness"
    heard, wanted = [], task("params")
    assert remote.perform(Order(wanted, "key", "f"), heard.append) is None
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

    assert remote.perform(Order(wanted, "key", "f", lockstep=True), emit) is None
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
    assert remote.perform(Order(wanted, "key", "f", slowed={slow: 0.5}), heard.append) is None
    facts = {m["record"]["cell"]: m["record"]["readings"][0]["facts"] for m in heard if "record" in m}
    assert facts[slow]["slowed"] == 0.5
    assert "slowed" not in facts[wanted.cells[0].id]


@pytest.mark.slow
def test_a_worker_s_death_comes_through(remote):
    wanted = task("saved_memory", "acb")
    wanted = replace(wanted, budget=replace(wanted.budget, timeout=1))
    death = remote.perform(Order(wanted, "key", "f"), lambda message: None)
    assert death == Death(Status.TIMEOUT, "the task took longer than 1 s", death.output)


@pytest.mark.slow
def test_a_killed_server_is_a_death_and_the_next_task_has_a_new_one(remote):
    (server,) = servers()
    workers = server.children(recursive=True)
    death = hang(remote, server.kill)
    assert death.status is Status.KILLED
    assert "SIGKILL" in death.reason
    assert "chatter" in death.output
    assert "its C code's" in death.output
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    wanted, heard = task("params"), []
    assert remote.perform(Order(wanted, wanted.key, "f"), heard.append) is None
    assert len(heard) == 2


@pytest.mark.slow
def test_a_listener_that_raises_and_a_stop_from_elsewhere_end_the_server(remote):
    def refuse(message):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        remote.perform(Order(task("params"), "key", "f"), refuse)
    assert servers() == [], "in the middle of a task it is of no more use"
    with pytest.raises(Stopped):
        hang(remote, remote.stop)
    assert servers() == []


DRIVER = """
import json, sys, time
from pathlib import Path
from harness.execution.ab.remote import RemoteExecutor
from harness.records import Task
from harness.worker.messages import Order
task = Task.from_json(json.loads(sys.argv[2]))
with RemoteExecutor(Path(sys.argv[1])) as executor:
    executor.perform(Order(task, task.key, "f"), lambda message: print("begun", flush=True))
"""


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_behind(user, altered):
    words = [sys.executable, "-c", DRIVER, str(altered), json.dumps(task("saved_memory", "acb").to_json())]
    driver = subprocess.Popen(words, env=user.environment(), cwd=user.home, stdout=subprocess.PIPE, text=True)
    assert driver.stdout.readline() == "begun\n"
    assert len(user.processes()) >= 4, "driver, server, its forkserver, a worker that hangs"
    (server,) = psutil.Process(driver.pid).children()
    server.send_signal(signal.SIGINT)  # as Ctrl-C in a terminal does; the driver decides what comes of it
    time.sleep(0.5)
    assert server.is_running()
    assert server.status() != psutil.STATUS_ZOMBIE
    driver.kill()
    driver.communicate()
    assert user.wait_until_alone() == []
    assert list(user.home.glob("harness-*")) == [], "the worker's output is removed as well"


PLACES = ("harness/execution/ab/server.py", "harness/execution/station.py")
"""Of the server in a source tree: today's, and that of revisions before execution was divided into folders."""


def fake(root: Path, source: str, place: str = PLACES[0]) -> Path:
    """A source tree that has a server and nothing else."""
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    for folder in path.relative_to(root).parents[:-1]:
        (root / folder / "__init__.py").touch()
    return root


def greeting(name: str) -> str:
    """The source of a server that says hello as `name` and ends."""
    hello = (
        f"{{'protocol': {PROTOCOL}, 'records': {RECORD_VERSION}, 'source': {name!r}, 'package': harness.__path__[0]}}"
    )
    return f"import json, harness\nprint(json.dumps({{'hello': {hello}}}))\n"


@pytest.mark.parametrize(
    ("places", "served"), [(PLACES[:1], "new"), (PLACES[1:], "old"), (PLACES, "new")], ids=["new", "old", "both"]
)
def test_the_server_of_a_tree_is_looked_for_where_it_is_today_and_where_it_was(tmp_path, places, served):
    names = dict(zip(PLACES, ("new", "old"), strict=True))
    for place in places:
        fake(tmp_path / "tree", greeting(names[place]), place)
    with RemoteExecutor(tmp_path / "tree") as executor:
        assert executor.hello["source"] == served


def test_the_remedy_names_the_module_that_was_started(tmp_path):
    root = fake(tmp_path / "old", "import nonsense", PLACES[1])
    with pytest.raises(HarnessError, match=r"-m harness\.execution\.station' says"):
        RemoteExecutor(root).__enter__()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nonsense", r"exited with 1\n(.|\n)*No module named 'nonsense'\n  try: see what 'PYTHONPATH=\S*/old "),
        ("import os; os.kill(os.getpid(), 9)", r"was ended by SIGKILL\n  try: "),
        ("""print('{"hello": {"protocol": 9}}')""", r"speaks protocol 9 (.|\n)*try: compare two revisions on the same"),
    ],
)
def test_a_server_that_does_not_serve_is_an_error_with_the_reason(tmp_path, source, message):
    root = fake(tmp_path / "old", source)
    before = servers()
    with pytest.raises(HarnessError, match=message):
        RemoteExecutor(root).__enter__()
    assert servers() == before


def test_a_revision_without_a_server_is_too_old(tmp_path):
    root = fake(tmp_path / "old", "")
    (root / PLACES[0]).unlink()
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
    root = fake(tmp_path / "old", greeting("x"))
    with RemoteExecutor(root) as executor:
        assert executor.hello["package"] == str(root / "harness")


def test_a_source_that_changes_under_way_is_refused(tmp_path):
    shutil.copytree(ROOT / "harness", tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    before = set(servers())
    with RemoteExecutor(tmp_path) as executor:
        (server,) = set(servers()) - before
        server.kill()
        psutil.wait_procs([server], timeout=10)
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
        executor.perform(Order(task("params"), "key", "f"), lambda message: None)


def test_a_server_ends_when_it_is_told_to():
    server = subprocess.Popen(
        [sys.executable, "-m", "harness.execution.ab.server"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert json.loads(server.stdout.readline())["hello"]["protocol"] == PROTOCOL
    server.stdin.write(b'{"stop": true}\n')
    server.stdin.flush()
    assert server.wait(10) == 0
    assert (server.stdout.read(), server.stderr.read()) == (b"", b"")
    for pipe in (server.stdin, server.stdout, server.stderr):
        pipe.close()
