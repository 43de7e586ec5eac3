"""The action, its example workflow and the page about both: what they run is what this command line takes.

The action's own script is run by bash with a stand-in for `harness` that writes down its arguments and exits as told.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from harness.cli import app
from harness.verdict.rows import STRONGEST_FIRST, Exit, strongest

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
EXAMPLE = yaml.safe_load((ROOT / "docs" / "github-workflow.yml").read_text())
PAGE = (ROOT / "docs" / "continuous-integration.md").read_text()
STEPS = ACTION["runs"]["steps"]
SCRIPTS = {step["name"]: step for step in STEPS if "run" in step}
GATE = SCRIPTS["Measure and judge"]
PINNED = re.compile(r"actions/[a-z-]+@v\d+")

AB_OPTIONS = {"--suite", "--strict", "--format", "--out", "--rounds", "--set", "--only"}
"""What `harness ab BASE HEAD` takes; the command line itself is asked as soon as it has the command."""


def parsed(words: list[str]) -> dict[str, Any]:
    """The parameters of a command of ours; a usage error of click when it does not take these words."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    name, *rest = words
    if name == "ab" and name not in commands:
        options = [word for word in rest if word.startswith("--")]
        assert set(options) <= AB_OPTIONS
        assert not rest[0].startswith("--")
        assert not rest[1].startswith("--")
        return {"strict": "--strict" in options, "suite": Path(rest[rest.index("--suite") + 1])}
    return dict(commands[name].make_context(name, rest).params)


def expressions(value: Any) -> list[str]:
    return re.findall(r"\$\{\{\s*(.*?)\s*\}\}", str(value))


# the action


def test_inputs_and_outputs_have_descriptions_and_defaults():
    assert {"command", "suite", "baseline", "base", "strict", "python-version"} <= set(ACTION["inputs"])
    assert set(ACTION["outputs"]) == {"exit-code", "run"}
    assert all(entry["description"] for entry in [*ACTION["inputs"].values(), *ACTION["outputs"].values()])
    required = {name for name, entry in ACTION["inputs"].items() if entry.get("required")}
    assert required == {"suite"}
    assert all(isinstance(entry["default"], str) for name, entry in ACTION["inputs"].items() if name not in required)


def test_every_input_is_used_and_every_one_that_is_used_exists():
    used = {match[1] for text in expressions(STEPS) if (match := re.fullmatch(r"inputs\.([\w-]+)", text))}
    assert used == set(ACTION["inputs"])


def test_outputs_come_from_a_step_that_writes_them():
    for name, entry in ACTION["outputs"].items():
        (expression,) = expressions(entry["value"])
        assert expression == f"steps.{GATE['id']}.outputs.{name}"
        assert f"{name}=%s" in GATE["run"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash_that_stops_at_errors_and_takes_inputs_as_variables(name):
    step = SCRIPTS[name]
    assert step["shell"] == "bash"
    assert step["run"].startswith("set -euo pipefail\n")
    assert not expressions(step["run"]), "an input inside a script would be run as a part of it"
    checked = subprocess.run(["bash", "-n"], input=step["run"], text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    upper = set(re.findall(r"\$\{?([A-Z_]+)\b", step["run"])) - {"GITHUB_OUTPUT"}
    assert upper == set(step["env"]), "every variable is set, and every one that is set is used"


def test_the_package_is_installed_from_the_actions_own_path():
    step = SCRIPTS["Install the harness"]
    assert step["env"]["HARNESS"] == "${{ github.action_path }}"
    assert "pip install" in step["run"]
    assert '"$HARNESS"' in step["run"]


@pytest.mark.parametrize("place", ["action", "workflow"])
def test_foreign_actions_are_pinned_by_major_version(place):
    steps = STEPS if place == "action" else [step for job in EXAMPLE["jobs"].values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    assert all(PINNED.fullmatch(name) or (place == "workflow" and name == "./") for name in used)


# its script


class Result:
    """How the script ended: its exit code, what it wrote to GITHUB_OUTPUT, and how it called `harness`."""

    def __init__(self, folder: Path, code: int, printed: str) -> None:
        self.code, self.printed = code, printed
        written = (folder / "output").read_text().splitlines() if (folder / "output").exists() else []
        self.outputs = dict(line.split("=", 1) for line in written)
        self.calls = [path.read_text().splitlines() for path in sorted((folder / "calls").iterdir())]


STAND_IN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$CALLS/$(ls "$CALLS" | wc -l)"
if [[ "$1" == run ]]; then exit "$RUN_CODE"; else exit "$JUDGE_CODE"; fi
"""


@pytest.fixture
def act(tmp_path):
    """Run the gate as a GitHub runner would, with these inputs and exit codes of `harness`."""

    def run(run_code: int = 0, judge_code: int = 0, **inputs: str) -> Result:
        (tmp_path / "bin").mkdir()
        (tmp_path / "calls").mkdir()
        (tmp_path / "bin" / "harness").write_text(STAND_IN)
        (tmp_path / "bin" / "harness").chmod(0o755)
        values = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()}
        values |= {name.replace("_", "-"): value for name, value in inputs.items()}
        environ = {
            name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: values[found[1]], value)
            for name, value in GATE["env"].items()
        }
        environ |= {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "GITHUB_OUTPUT": str(tmp_path / "output")}
        environ |= {"CALLS": str(tmp_path / "calls"), "RUN_CODE": str(run_code), "JUDGE_CODE": str(judge_code)}
        # as the runner starts a step with shell: bash
        bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", GATE["run"]]
        ended = subprocess.run(bash, env=environ, cwd=tmp_path, text=True, capture_output=True)
        return Result(tmp_path, ended.returncode, ended.stdout + ended.stderr)

    return run


CHECK = {"suite": "suites/my ci.yaml", "baseline": "results/b.json", "out": "somewhere else"}
AB = {"command": "ab", "suite": "suites/ci.yaml", "base": "origin/main"}


def test_check_runs_the_suite_and_judges_the_run(act):
    result = act(**CHECK)
    measure, judge = (parsed(words) for words in result.calls)
    assert [words[0] for words in result.calls] == ["run", "check"]
    assert (measure["suite"], measure["out"], measure["new"]) == (
        Path("suites/my ci.yaml"),
        Path("somewhere else"),
        True,
    )
    assert measure["rounds"] is None
    assert (judge["run"], judge["baseline"], judge["strict"]) == (Path("somewhere else"), Path("results/b.json"), True)
    assert "--format" in result.calls[1]
    assert "github" in result.calls[1]
    assert (result.code, result.outputs) == (0, {"exit-code": "0", "run": "somewhere else"})


def test_ab_compares_two_versions(act):
    result = act(**AB, head="feature", strict="false", rounds="6")
    (words,) = result.calls
    assert words[:5] == ["ab", "origin/main", "feature", "--suite", "suites/ci.yaml"]
    found = parsed(words)
    assert (found["suite"], found["strict"]) == (Path("suites/ci.yaml"), False)
    assert words[-2:] == ["--rounds", "6"]
    assert words[words.index("--format") :][:2] == ["--format", "github"]


@pytest.mark.parametrize("strict", ["true", "false"])
@pytest.mark.parametrize("inputs", [CHECK, AB], ids=["check", "ab"])
def test_strict_and_rounds_are_handed_on(act, inputs, strict):
    result = act(**inputs, strict=strict, rounds="5")
    assert parsed(result.calls[-1])["strict"] is (strict == "true")
    assert result.calls[0][-2:] == ["--rounds", "5"] or "5" in result.calls[0]
    for words in result.calls:
        parsed(words)


@pytest.mark.parametrize("judge_code", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("run_code", [0, 3, 5])
def test_the_check_is_shown_and_the_strongest_code_decides(act, run_code, judge_code):
    result = act(run_code, judge_code, **CHECK)
    assert [words[0] for words in result.calls] == ["run", "check"]
    assert result.code == strongest([run_code, judge_code])
    assert result.outputs["exit-code"] == str(result.code)


@pytest.mark.parametrize("run_code", [1, 2, 130, 137])
def test_a_run_that_left_nothing_to_judge_ends_it(act, run_code):
    result = act(run_code, 0, **CHECK)
    assert [words[0] for words in result.calls] == ["run"]
    assert (result.code, result.outputs["exit-code"]) == (run_code, str(run_code))


@pytest.mark.parametrize("run_code", [0, 3])
def test_a_check_that_was_killed_is_no_verdict_of_ours(act, run_code):
    assert act(run_code, 137, **CHECK).code == 137


@pytest.mark.parametrize("judge_code", [0, 1, 2, 3, 4, 5, 130])
def test_ab_ends_as_the_command_does(act, judge_code):
    assert act(0, judge_code, **AB).code == judge_code


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({"suite": "s.yaml"}, "check needs the input baseline"),
        ({"suite": "s.yaml", "command": "ab"}, "ab needs the input base"),
        ({**CHECK, "command": "bench"}, "the input command is neither check nor ab"),
        ({**CHECK, "strict": "yes"}, "the input strict is neither true nor false"),
    ],
)
def test_wrong_inputs_are_refused_before_anything_is_measured(act, inputs, complaint):
    result = act(**inputs)
    assert result.calls == []
    assert (result.code, result.outputs["exit-code"]) == (2, "2")
    assert f"::error::{complaint}" in result.printed


def test_an_input_is_a_word_and_never_a_command(act, tmp_path):
    result = act(suite="$(touch pwned); x", baseline="`touch pwned`", out="a b")
    assert not (tmp_path / "pwned").exists()
    assert result.calls[0][1] == "$(touch pwned); x"


# the example


def uses_of_ours() -> dict[str, dict[str, Any]]:
    return {
        name: step["with"] for name, job in EXAMPLE["jobs"].items() for step in job["steps"] if step.get("uses") == "./"
    }


def test_the_example_runs_the_exact_gate_on_every_push_and_pull_request():
    triggers = EXAMPLE[True]  # YAML 1.1 reads the key `on` as true
    assert {"push", "pull_request", "workflow_dispatch"} <= set(triggers)
    gate = uses_of_ours()["gate"]
    assert (gate["command"], gate["suite"], gate["baseline"]) == (
        "check",
        "suites/ci.yaml",
        "results/baselines/ci.json",
    )
    assert (ROOT / gate["suite"]).is_file()
    assert (ROOT / gate["baseline"]).is_file()
    assert gate.get("strict", ACTION["inputs"]["strict"]["default"]) == "true"


def test_the_example_gives_inputs_that_exist_and_all_that_are_required():
    assert {use["command"] for use in uses_of_ours().values()} == {"check", "ab"}
    for use in uses_of_ours().values():
        assert set(use) <= set(ACTION["inputs"])
        assert "suite" in use
        assert ("baseline" if use["command"] == "check" else "base") in use
        assert all(isinstance(value, str) for value in use.values())


def test_the_example_asks_for_what_it_uses():
    inputs = set(EXAMPLE[True]["workflow_dispatch"]["inputs"])
    used = {name for text in expressions(EXAMPLE) for name in re.findall(r"inputs\.([\w-]+)", text)}
    assert used == inputs
    assert EXAMPLE["permissions"] == {"contents": "read"}


def test_the_example_fetches_history_for_ab_and_keeps_the_run():
    for name, job in EXAMPLE["jobs"].items():
        checkout, ours, upload = job["steps"]
        assert checkout["uses"].startswith("actions/checkout@")
        depth = checkout.get("with", {}).get("fetch-depth")
        assert depth == (0 if ours["with"]["command"] == "ab" else None), name
        assert upload["uses"].startswith("actions/upload-artifact@")
        assert upload["with"]["path"] == ours["with"]["out"]
        assert upload["if"] == "${{ !cancelled() }}", "a run that failed is the one to look at"


# the page


def lines_of_commands(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("    harness ")]


def test_every_command_of_the_page_is_one():
    commands = lines_of_commands(PAGE)
    assert {words.split()[1] for words in commands} >= {"run", "check", "baseline", "ab"}
    for line in commands:
        parsed(shlex.split(line)[1:])


def test_the_page_has_every_exit_code_in_its_order():
    found = re.findall(r"^\| (\d) \| ([a-z ]+) \|", PAGE, flags=re.MULTILINE)
    assert found == [(str(int(code)), code.words) for code in STRONGEST_FIRST]
    assert len(found) == len(Exit)


def test_what_the_page_names_exists():
    for path in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / path).exists(), path
    assert all(f"`{name}`" in PAGE for name in ACTION["inputs"])
