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


def modules_after(words: list[str], cwd: Path) -> set[str]:
    """The top-level modules that a command has imported when it ends."""
    script = (
        "import sys, json\nfrom harness.cli import main\n"
        f"sys.argv = ['harness', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "words", [["--help"], ["plan", "suites/quick.yaml"], ["list", "blocks"], ["list", "backbones"], ["schema"]]
)
def test_light_commands_import_nothing_heavy(words):
    assert modules_after(words, ROOT).isdisjoint(HEAVY)


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


def test_light_commands_start_fast():
    """Promised: half a second. The best of several on a shared machine must keep it."""
    for words in (["--help"], ["plan", "suites/quick.yaml"], ["list", "blocks"], ["schema"]):
        times = []
        for _ in range(8):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-m", "harness", *words], cwd=ROOT, capture_output=True, check=True)
            times.append(time.perf_counter() - begun)
            if times[-1] < 0.5:
                break
        assert min(times) < 0.5, f"{words}: {min(times):.2f} s at best"


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
def test_nonsense_is_answered_with_exit_code_2_and_nothing_is_written(user, words, says):
    user.suite("axis: 3", "broken.yaml")
    user.suite("axes: {block: conv, backbone: layer}\nmetrics: params", "good.yaml")
    before = sorted(user.home.rglob("*"))
    done = user.run(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(user.home.rglob("*")) == before


@pytest.mark.slow
def test_a_suite_for_a_device_that_is_absent_exits_5_and_names_another(user):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    done = user.run("run", ROOT / "suites" / "gpu.yaml", "--out", "run")
    assert done.returncode == 5, done.stderr
    assert "suites/cpu.yaml" in done.stdout
    assert {r["status"] for r in user.records(user.home / "run")} == {"skipped"}
    assert "0 cells measured" in done.stdout


def user_cell(user):
    return user.records(user.home / "run")[0]["cell"]


@pytest.mark.slow
def test_the_whole_way_from_suite_to_check(user):
    suite = user.suite(
        """
        axes: {block: [conv, repvgg, {orepa: {reparam: offline}}], backbone: layer, image_size: 14, batch_size: 2}
        metrics: [params, macs, saved_memory, train_memory, fusion_error, train_step, latency]
        budget: {rounds: 4, seconds: 0.05}
        """
    )
    done = user.run("run", suite, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "orepa(reparam=offline)" in done.stdout
    for format_, sign in (("md", "|"), ("tex", r"\toprule"), ("csv", "metric"), ("html", "<table"), ("text", "conv")):
        reported = user.run("report", "run", "--format", format_)
        assert reported.returncode == 0, reported.stderr
        assert sign in reported.stdout
    assert user.run("baseline", "run", "--out", "base.json").returncode == 0
    for words in (["report", "run"], ["check", "run", "--baseline", "base.json"], ["show", "run", user_cell(user)]):
        assert modules_after(words, user.home).isdisjoint({"torch", "timm", "torchvision", "matplotlib"})
    checked = user.run("check", "run", "--baseline", "base.json")
    assert checked.returncode == 0, checked.stdout
    assert user.run("check", "run", "--baseline", "missing.json").returncode in (2, 5)
