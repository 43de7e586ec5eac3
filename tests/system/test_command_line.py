"""The commands: exit codes, nonsense, what is imported, and how fast they start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "pandas", "scipy", "matplotlib", "timm", "torchvision")


def modules_after(*commands: list[str], cwd: Path) -> set[str]:
    """The top-level modules that commands, one after the other in one process, have imported when they end."""
    script = (
        "import sys, json\nfrom harness.cli import main\n"
        f"for words in {commands!r}:\n"
        "    sys.argv = ['harness', *words]\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        "print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_light_commands_import_nothing_heavy():
    light = ["--help"], ["plan", "suites/quick.yaml"], ["list", "blocks"], ["list", "backbones"], ["schema"]
    assert modules_after(*light, cwd=ROOT).isdisjoint(HEAVY)


def test_importing_harness_imports_nothing_at_all():
    script = "import sys; import harness; print(sorted(m for m in sys.modules if m.startswith('harness')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['harness']"


def test_the_public_names_are_there_when_they_are_asked_for():
    script = (
        "import harness, sys; block = harness.blocks.create('repvgg', 4, 4)\n"
        "assert callable(harness.swap) and callable(harness.fuse) and callable(harness.run)\n"
        "assert callable(harness.plan) and callable(harness.load_suite) and callable(harness.open_run)\n"
        "assert {'swap', 'blocks'} <= set(dir(harness))\n"
        "import harness.planning, harness.execution, harness.models\n"
        "assert callable(harness.run) and callable(harness.plan) and callable(harness.swap)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def seconds_of(*words: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - begun


LIBRARIES = "import typer, rich.console, pydantic, yaml"
"""What any light command imports: 0.13 s where the promise was made, and `plan` took 2.8 times as long."""


@pytest.mark.alone
@pytest.mark.parametrize("words", [["--help"], ["plan", "suites/quick.yaml"], ["list", "blocks"], ["schema"]], ids=str)
def test_light_commands_start_fast(words):
    """Promised: half a second. On a slower or busier machine: 3.5 times what the libraries take, turn by turn."""
    ours, libraries = [], []
    for _ in range(12):
        ours.append(seconds_of("-m", "harness", *words))
        libraries.append(seconds_of("-c", LIBRARIES))
        if min(ours) < max(0.5, 3.5 * min(libraries)):
            return
    pytest.fail(f"{words}: {min(ours):.2f} s at best, the libraries alone {min(libraries):.2f} s")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "nowhere.yaml"], "there is no file"),
        (["plan", "broken.yaml"], "broken.yaml:1:1"),
        (["run", "broken.yaml"], "no key"),
        (["run", "good.yaml", "--only", "kernel_size == 9"], "picks none"),
        (["run", "good.yaml", "--set", "batch_size"], "AXIS=VALUE"),
        (["run", "good.yaml", "--max-time", "soon"], "not a time"),
        (["run", "good.yaml", "--rounds", "0"], "--rounds"),
        (["run", "good.yaml", "--executor", "cloud"], "--executor"),
        (["report", "nowhere"], "is not a run"),
        (["show", ".", "abc"], "is not a run"),
        (["check", ".", "--baseline", "none.json"], "is not a run"),
        (["list", "blcks"], "blocks"),
        (["frobnicate"], "No such command"),
    ],
)
def test_nonsense_is_answered_with_exit_code_2_and_nothing_is_written(resident, shell, words, says):
    resident.suite("axis: 3", "broken.yaml")
    resident.suite("axes: {block: conv, backbone: layer}\nmetrics: params", "good.yaml")
    before = sorted(resident.home.rglob("*"))
    done = shell.run(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(resident.home.rglob("*")) == before


def test_a_process_ends_with_the_commands_exit_code(user):
    """What the tests above and elsewhere see in one process for many commands is what a shell sees."""
    done = user.run("run", "nowhere.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no file" in done.stderr


@pytest.mark.slow
def test_a_suite_for_a_device_that_is_absent_exits_5_and_names_another(resident, shell):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    done = shell.run("run", ROOT / "suites" / "gpu.yaml", "--out", "absent")
    assert done.returncode == 5, done.stderr
    assert "suites/cpu.yaml" in done.stdout
    of_cells = [r for r in resident.records(resident.home / "absent") if r["kind"] in ("cell", "visit", "training")]
    assert {r["status"] for r in of_cells} == {"skipped"}
    assert "0 cells measured" in done.stdout


@pytest.mark.slow
def test_the_whole_way_from_suite_to_check(resident, shell):
    suite = resident.suite(
        """
        axes: {block: [conv, repvgg, {orepa: {reparam: offline}}], backbone: layer, image_size: 14, batch_size: 2}
        metrics: [params, macs, saved_memory, train_memory, fusion_error, train_step, latency]
        budget: {rounds: 4, seconds: 0.05}
        """
    )
    done = shell.run("run", suite, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "orepa(reparam=offline)" in done.stdout
    for format_, sign in (("md", "|"), ("tex", r"\toprule"), ("csv", "metric"), ("html", "<table"), ("text", "conv")):
        reported = shell.run("report", "run", "--format", format_)
        assert reported.returncode == 0, reported.stderr
        assert sign in reported.stdout
    assert shell.run("baseline", "run", "--out", "base.json").returncode == 0
    cell = resident.records(resident.home / "run")[0]["cell"]
    reading = ["report", "run"], ["check", "run", "--baseline", "base.json"], ["show", "run", cell]
    assert modules_after(*reading, cwd=resident.home).isdisjoint({"torch", "timm", "torchvision", "matplotlib"})
    checked = shell.run("check", "run", "--baseline", "base.json")
    assert checked.returncode == 0, checked.stdout
    assert shell.run("check", "run", "--baseline", "missing.json").returncode in (2, 5)
