"""The pages for readers, held to the repository: links, paths, modules, commands, tables of names and defaults."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import typer

from harness import catalog
from harness.catalog import vocabulary
from harness.cli import app
from harness.planning.looks import LEAST_ROUNDS
from harness.suite.model import Axes, BudgetSpec, Part, Suite
from harness.verdict import rules
from harness.verdict.rows import STRONGEST_FIRST
from harness.where import KEYS, PRESETS

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
SUITES = PAGES["docs/suites.md"]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PUBLIC = ("blocks", "fuse", "load_suite", "open_run", "plan", "run", "swap")
"""What `import harness` gives; importing all of it would bring torch."""

FOLDERS = ("harness", "tests", "suites", "results", "docs")
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./*-]*)`")
DOTTED = re.compile(r"(?<![\w./-])harness((?:\.[A-Za-z_]\w*)+)")

LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^ {4}|`|/)(harness [a-z]+(?: [^`\n]*)?)", flags=re.MULTILINE)


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, without its head."""
    section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return rows[2:]


def names(text: str) -> list[str]:
    """The words in backticks."""
    return re.findall(r"`([^`]+)`", text)


def sources() -> list[Path]:
    """Every text of the program and of what is said about it."""
    found = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "pyproject.toml", "tox.ini")]
    found += [ROOT / "action.yml", ROOT / ".ci" / "run", *(ROOT / "results" / "studies").rglob("*.md")]
    for folder in ("harness", "suites", "docs"):
        found += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".yaml", ".yml")]
    return found


# what is named exists


def anchors(path: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    for link in LINK.findall(PAGES[name]):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = ((ROOT / name).parent / target) if target else ROOT / name
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("name", PAGES)
def test_every_path_exists(name):
    for path in PATH.findall(PAGES[name]):
        if path.startswith("results/runs/"):
            continue  # what a run of the reader's makes
        assert list(ROOT.glob(path.rstrip("/"))), path


@pytest.mark.parametrize("name", PAGES)
def test_every_test_file_that_is_named_by_itself_exists(name):
    for file in re.findall(r"`(test_\w+\.py)`", PAGES[name]):
        assert list((ROOT / "tests").rglob(file)), file


def is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@pytest.mark.parametrize("name", [*PAGES, "CHANGELOG.md"])
def test_every_dotted_name_is_a_module_or_stands_in_one(name):
    for dotted in DOTTED.findall((ROOT / name).read_text(encoding="utf-8")):
        parts = ["harness", *dotted.strip(".").split(".")]
        if parts[1] in PUBLIC and not is_module(parts[:2]):
            continue
        module = max((n for n in range(1, len(parts) + 1) if is_module(parts[:n])), default=0)
        assert module > 1, f"harness{dotted}"
        assert len(parts) - module <= 1, f"harness{dotted}"
        if module < len(parts):
            path = ROOT.joinpath(*parts[:module])
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            assert re.search(rf"\b{parts[module]}\b", file.read_text(encoding="utf-8")), f"harness{dotted}"


def test_no_text_cites_a_document_that_is_not_here():
    """Pages by their names, and numbered issues, which are kept elsewhere."""
    here = {path.name for path in ROOT.glob("*.md")} | {path.name for path in (ROOT / "docs").glob("*.md")}
    here |= {path.name for path in (ROOT / "results" / "studies").rglob("*.md")}
    for path in sources():
        text = path.read_text(encoding="utf-8")
        cited = set(re.findall(r"(?<![\w*{.])[A-Za-z][\w-]*\.md\b", text))
        assert cited <= here, f"{path}: {cited - here}"
        if "published" not in path.parts and "results" not in path.parts:
            assert not re.search(r"\bissue #?\d", text, flags=re.IGNORECASE), path


# figures


INTERVAL = re.compile(r"\d+\.\d+x\s+\[\d+\.\d+,\s+\d+\.\d+\]")


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if INTERVAL.search(page)])
def test_every_interval_stands_in_a_report_that_the_page_names(name):
    linked = [link for link in LINK.findall(PAGES[name]) if link.endswith("/report.md")]
    reports = " ".join(((ROOT / name).parent / link).read_text(encoding="utf-8") for link in linked)
    for interval in INTERVAL.findall(PAGES[name]):
        assert " ".join(interval.split()) in reports, interval


def test_the_first_table_is_that_of_its_report():
    page = PAGES["README.md"]
    (link,) = [link for link in LINK.findall(page) if link.endswith("/report.md")]
    report = (ROOT / link).read_text(encoding="utf-8")
    for row in table(page, "What it prints"):
        times_and_memory = [cell.split(" (")[0] for cell in (row[1], row[3], row[4])]
        lines = [line for line in report.splitlines() if line.startswith(f"| {row[0]} | ")]
        shown = " ".join(lines)
        assert all(re.search(rf"\| {re.escape(number)}\b", shown) for number in times_and_memory), row
        assert f"| {row[7]} |" in shown
        assert f"{float(row[8].split()[0]):.2f}" in shown


# commands


@pytest.mark.parametrize("name", PAGES)
def test_every_command_is_one(name):
    for line in COMMAND.findall(PAGES[name]):
        words = shlex.split(line.split("  #")[0], comments=True)
        if words[1] == "COMMAND":
            continue
        assert words[1] in COMMANDS, line
        options = {option for parameter in COMMANDS[words[1]].params for option in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_the_page_on_commands_has_all_of_them():
    rows = re.findall(r"^\| `harness ([a-z]+)", PAGES["docs/commands.md"], flags=re.MULTILINE)
    assert set(rows) == set(COMMANDS)


def test_the_page_on_commands_has_every_exit_code_in_its_order():
    found = [int(row[0]) for row in table(PAGES["docs/commands.md"], "Exit codes")]
    assert found == [int(code) for code in STRONGEST_FIRST]


def test_the_two_commands_are_those_that_ci_runs():
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert f"    {command}\n" in PAGES["README.md"]
    assert f"    {command} -- harness run suites/quick.yaml\n" in PAGES["README.md"]


# names and defaults in the page on suites


def test_axes_and_their_words():
    rows = {names(row[0])[0]: row for row in table(SUITES, "Axes and their defaults")}
    assert list(rows) == list(Axes.model_fields)
    assert [name for name in names(rows["dtype"][1]) if name in vocabulary.DTYPES] == list(vocabulary.DTYPES)
    assert names(rows["memory_format"][1]) == list(vocabulary.MEMORY_FORMATS)
    assert {"cpu", "cuda", "xpu", "mps"} <= set(names(rows["device"][1]))
    for axis in ("dtype", "memory_format"):
        assert names(rows[axis][2]) == Axes.model_fields[axis].default
    for axis in ("device", "optimizer", "dataset"):
        assert names(rows[axis][2])[0] == Axes.model_fields[axis].default[0].name


def test_sizes_of_batches_and_images():
    rows = {names(row[0])[0]: row[2] for row in table(SUITES, "Axes and their defaults")}
    sizes = {
        "batch_size": vocabulary.default_batch_size,
        "image_size": vocabulary.default_image_size,
    }
    for axis, default in sizes.items():
        said = [int(number) for number in re.findall(r"\b\d+\b", rows[axis])]
        assert set(said) == {default("resnet18", "cpu"), default("resnet18", "cuda"), default("layer", "cuda")}


def test_keys_of_a_suite():
    said = [name for row in table(SUITES, "Keys") for name in names(row[0])]
    assert set(said) == {*Part.model_fields, *Suite.model_fields}


def test_budget_and_its_defaults():
    rows = {names(row[0])[0]: row[1] for row in table(SUITES, "Budget")}
    assert set(rows) == set(BudgetSpec.model_fields)
    for key in ("rounds", "seconds", "warmup", "seeds", "precision"):
        assert float(rows[key]) == BudgetSpec.model_fields[key].default
    assert (rows["timeout"], BudgetSpec.model_fields["timeout"].default) == ("10m", 600)
    assert BudgetSpec.model_fields["group_time"].default is BudgetSpec.model_fields["memory"].default is None
    assert f"a verdict needs {LEAST_ROUNDS}" in SUITES


def test_metrics():
    said = [name for row in table(SUITES, "Metrics") for name in names(row[0])]
    assert set(said) <= set(catalog.metrics())
    assert len(said) >= 15, "a new metric is one file; one that is told of here stays told of"
    accuracy = catalog.metrics()["accuracy"]["options"]
    row = next(row for row in table(SUITES, "Metrics") if "`accuracy`" in row[0])
    assert dict(re.findall(r"`(\w+)` (\d+)", row[1])) == {key: str(one["default"]) for key, one in accuracy.items()}


def test_where():
    section = SUITES.split("## Which layers: `where`", 1)[1].split("\n## ", 1)[0]
    presets = section.split("Presets:", 1)[1].split(". ", 1)[0]
    assert names(presets) == list(PRESETS)
    assert all(f"`{key}`" in section for key in KEYS)


def test_thresholds():
    rows = {row[0]: row[1] for row in table(SUITES, "Gates")}
    gates = "\n".join("|".join(row) for row in table(SUITES, "Gates"))
    said = {dtype: float(limit) for limit, dtype in re.findall(r"(\S+) in (\w+)", rows["fusion errors"])}
    limits = {dtype: rules.default_limit("fusion_error", dtype) for dtype in vocabulary.DTYPES}
    assert said == {dtype: limit for dtype, limit in limits.items() if limit is not None}
    assert f"within {rules.CLOSE_TOLERANCE:g}".replace("0.0001", "1e-4") in gates
    assert gates.count(f"{100 * rules.ACROSS_RUNS_TIME_THRESHOLD:g} %") == 3
    assert gates.count(f"{100 * rules.PAIRED_TIME_THRESHOLD:g} % and 1 µs") == 3
    assert f"{100 * rules.WIDE_THRESHOLD:g} %" in gates
    assert f"{100 * rules.ACCURACY_THRESHOLD:g} %" in gates
    assert rules.TIME_FLOOR == 1e-6


def test_suites_that_are_told_of_are_there():
    said = {name for row in table(SUITES, "The suites that come with it") for name in names(row[0])}
    files = (ROOT / "suites").rglob("*.yaml")
    assert said <= {str(path.relative_to(ROOT / "suites").with_suffix("")) for path in files}
    assert len(said) >= 13


def test_blocks_are_told_of():
    pages = PAGES["docs/blocks.md"] + PAGES["docs/dynamic-blocks.md"]
    missing = [name for name in catalog.blocks() if f"`{name}`" not in pages and name != "native"]
    assert len(catalog.blocks()) - len(missing) >= 58, f"a new block is one file; of the others {missing} are left out"


# the map


def test_layers_are_those_of_the_contract():
    rows = table(PAGES["docs/architecture.md"], "What may import what")
    said = [name for row in rows for name in names(row[0])]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert said == [name for layer in reversed(layers) for name in layer.split(" | ")]


def test_every_folder_has_its_line():
    tree = PAGES["docs/architecture.md"].split("```text", 1)[1].split("```", 1)[0]
    for path in (ROOT / "harness").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert re.search(rf"(^|\s){path.name}/\s", tree), path.name


# the first page


def test_the_first_page_is_short():
    assert len(PAGES["README.md"].split()) <= 1200


def test_public_names_are_those_of_the_package():
    assert set(PUBLIC) == set(import_module("harness").__all__)
