"""The rules of the house that import-linter cannot say, held by reading the source."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "harness").rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
ACCELERATORS = ("cuda", "xpu", "mps")


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of the harness that are imported anywhere in a module, inside of functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name in MODULES)


def texts(tree: ast.AST) -> Iterator[str]:
    """String literals that are no docstrings."""
    documents = {
        id(node.body[i].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for i in range(len(node.body))
        if isinstance(node.body[i], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


def test_no_module_imports_two_of_one_stem():
    """`calibration` of verdict and `calibration` of report in one file are one too many for its reader."""
    for name, tree in TREES.items():
        by_stem = defaultdict(set)
        for module in {name, *imported(tree)}:
            by_stem[module.rpartition(".")[2]].add(module)
        for stem, modules in by_stem.items():
            # a package and the module in it that is called as it are one thing
            assert len({module.removesuffix(f".{stem}.{stem}") for module in modules} - {f"harness.{stem}"}) <= 1, (
                f"{name} imports {', '.join(sorted(modules))}"
            )


def test_every_file_of_metrics_registers_a_metric():
    for name, tree in TREES.items():
        if name.startswith("harness.metrics."):
            called = {
                decorator.func.id
                for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef)
                for decorator in node.decorator_list
                if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name)
            }
            assert "metric" in called, f"{name} registers none: what metrics stand on is in harness.measuring"


def test_kinds_of_accelerators_are_named_in_their_own_files_alone():
    for name, path in MODULES.items():
        said = path.read_text(encoding="utf-8")
        if not name.startswith("harness.devices") and any(kind in said for kind in ACCELERATORS):
            named = [text for text in texts(TREES[name]) if text.partition(":")[0] in ACCELERATORS]
            assert not named, f"{name} names {named}: the kind declares it, the mechanism asks"


def test_no_test_imports_from_another_test_file():
    for path in (ROOT / "tests").rglob("*.py"):
        found = re.findall(r"^\s*(?:from|import) (test_\w+|conftest)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert not found, f"{path.name} imports from {found}: move what both need into a support module"


def test_a_cell_is_written_out_once_for_all_tests_of_a_folder():
    written = defaultdict(list)
    for path in (ROOT / "tests").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body if "= Cell" in text else ():
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                call = ast.unparse(node.value.func)
                if call in ("Cell", "Cell.from_json"):
                    written[path.parent.name].append(path.name)
    assert all(len(files) == 1 for files in written.values()), written


def test_no_any_hides_behind_an_ignore():
    for name, path in MODULES.items():
        assert "no-any-return" not in path.read_text(encoding="utf-8"), f"{name}: type what it hides"
