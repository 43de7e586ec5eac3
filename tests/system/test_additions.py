"""Each kind of addition is one hand-written file: those in additions/ are laid over a copy of the harness and used.

additions/ has the folders of harness/. The files were written as somebody new would, from docs/architecture.md and
CONTRIBUTING.md; nothing else of the copy is changed but what `python -m harness.indexing` writes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line_user import ROOT, Shell, User

ADDITIONS = Path(__file__).parent / "additions"
FILES = sorted(path.relative_to(ADDITIONS).as_posix() for path in ADDITIONS.rglob("*.py"))

KINDS = {
    "a fusable block": "blocks/reparam/cross.py",
    "a per-sample block": "blocks/dynamic/filter_scale.py",
    "a metric": "metrics/layers.py",
    "a dataset": "data/stripes.py",
    "a report format": "report/exporters/rst.py",
    "an optimizer": "training/optimizers/rmsprop.py",
    "a device kind": "devices/emulated.py",
    "a backbone": "models/nets/tiny.py",
}

SUITE = """
parts:
  net:
    axes:
      block: [conv, cross, {cross: {combine: mean, point: false}}, filter_scale]
      backbone: tiny_8
      device: {emulated: {deterministic: true}}
      optimizer: {rmsprop: {centered: true}}
      dataset: stripes
    metrics: [params, layers, fusion_error, train_memory, {accuracy: {epochs: 1, train_images: 300, image_size: 16}}]
  layer:
    axes: {block: [conv, cross], backbone: {layer: {c_in: 8, c_out: 8}}, device: [cpu, emulated]}
    metrics: [params, layers, latency]
budget: {rounds: 4, seconds: 0.02}
"""


def python(source: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=source, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with all additions in it, indexed."""
    source = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "harness", source / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        assert not (source / "harness" / file).exists(), f"{file} is there already"
        shutil.copy(ADDITIONS / file, source / "harness" / file)
    done = python(source, "-m", "harness.indexing", "--backbones", "tiny_*")
    assert done.returncode == 0, done.stderr
    return source


@pytest.fixture(scope="module")
def newcomer(extended: Path, tmp_path_factory: pytest.TempPathFactory) -> User:
    return User(tmp_path_factory.mktemp("home"), extended)


@pytest.fixture(scope="module")
def terminal(newcomer: User) -> Iterator[Shell]:
    with newcomer.shell() as one:
        yield one


@pytest.fixture(scope="module")
def run(newcomer: User, terminal: Shell) -> Path:
    """A run that uses all of them at once."""
    done = terminal.run("run", newcomer.suite(SUITE), "--out", newcomer.home / "run")
    assert done.returncode == 0, done.stderr
    assert " 0 failed, 0 unsupported, 0 skipped" in done.stdout.splitlines()[-1]
    return newcomer.home / "run"


def test_every_kind_of_addition_is_one_file_here():
    assert sorted(KINDS.values()) == FILES


def test_nothing_but_the_files_and_the_index_differs(extended):
    def files(root: Path) -> dict[str, bytes]:
        found = {path.relative_to(root).as_posix(): path for path in (root / "harness").rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in found.items() if "__pycache__" not in name}

    before, after = files(ROOT), files(extended)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {
        *(f"harness/{file}" for file in FILES),
        "harness/catalog/index.json",
        "harness/catalog/backbones.json",
    }


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("blocks", ["cross", "filter_scale"]),
        ("metrics", ["layers"]),
        ("datasets", ["stripes"]),
        ("devices", ["emulated"]),
        ("backbones", ["tiny_8", "tiny_16"]),
    ],
)
def test_what_was_added_is_listed(terminal, what, names):
    listed = json.loads(terminal.run("list", what, "--format", "json").stdout)
    assert set(names) <= set(listed)
    if what == "blocks":
        assert {name: listed[name]["family"] for name in names} == {
            "cross": "re-parameterized",
            "filter_scale": "dynamic",
        }


def test_its_options_are_checked_before_anything_is_measured(newcomer, terminal):
    wrong = {
        "{cross: {combine: product}}": "use sum, mean",
        "{filter_scale: {gate: relu}}": "use tanh, sigmoid",
    }
    for block, remedy in wrong.items():
        suite = newcomer.suite(f"axes: {{block: {block}, backbone: tiny_8}}\nmetrics: [params]", "wrong.yaml")
        done = terminal.run("plan", suite)
        assert done.returncode == 2
        assert remedy in done.stderr
    suite = newcomer.suite("axes: {block: conv, backbone: tiny_8, optimizer: {rmsprop: {beta: 1}}}\nmetrics: [params]")
    done = terminal.run("plan", suite)
    assert done.returncode == 2
    assert "alpha" in done.stderr


def test_the_defaults_are_those_that_the_device_declares(newcomer, terminal):
    suite = newcomer.suite("axes: {block: conv, backbone: tiny_8, device: emulated}\nmetrics: [params]", "plain.yaml")
    plan = json.loads(terminal.run("plan", suite, "--format", "json").stdout)
    (cell,) = plan["cells"].values()
    assert (cell["batch_size"], cell["image_size"]) == (2, 32)


def readings(newcomer: User, run: Path) -> dict[tuple[str, str, str], list[float]]:
    cells = json.loads((run / "run.json").read_text())["plan"]["cells"]
    found = {}
    for record in newcomer.records(run):
        if record["cell"] in cells and cells[record["cell"]]["part"] == "net":
            label = json.dumps(cells[record["cell"]]["block"])
            found |= {(label, one["metric"], one["form"]): one["values"] for one in record["readings"]}
    return found


def test_one_suite_uses_them_all(newcomer, run):
    found = readings(newcomer, run)
    assert found['"cross"', "fusion_error", "fused"][0] < 5e-6
    assert found['"cross"', "layers", "train"] == [
        1 + 2 * 3 + 1
    ]  # the stem, three convolutions a block, the classifier
    assert found['"cross"', "layers", "fused"] == found['"conv"', "layers", "fused"] == [4]
    assert ('"filter_scale"', "layers", "fused") in found  # stem and classifier fold though the block does not
    for block in ('"conv"', '"cross"', '"filter_scale"'):
        assert found[block, "accuracy", "train"][0] > 0.4, "four classes, and colours that tell them apart"


def test_a_metric_has_its_place_and_its_words_in_the_report(terminal, run):
    text = terminal.run("report", run).stdout
    runs = text[text.index("What it costs to run") :]
    heading = next(line for line in runs.splitlines() if "layers" in line and "latency" in line)
    assert heading.index("layers") < heading.index("latency"), "its rank puts it there"


def test_a_format_is_a_choice_of_the_command_line_and_is_written_with_the_others(terminal, run):
    assert (run / "report.rst").exists()
    printed = terminal.run("report", run, "--format", "rst").stdout
    assert printed.splitlines()[1] == "#" * len(printed.splitlines()[0])
    assert "rst" in terminal.run("report", run, "--format", "rts").stderr


@pytest.mark.slow
def test_the_tests_that_walk_the_registry_take_a_new_block_at_once(extended):
    """Fused against trained in float64, places, samples, the contract: with the copy's harness and these very tests."""
    files = ("test_blocks_fused.py", "test_blocks_places.py", "test_blocks_samples.py", "test_blocks_counts.py")
    done = python(
        extended, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"),
        "--rootdir", str(ROOT), *(str(ROOT / "tests" / "torch" / file) for file in files),
        "-k", "cross or filter_scale or every_block_has",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
