"""A check in print: text, JSON, and GitHub's annotations and job summary."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt  # as rich has it
from markdown_it.token import Token
from synthetic_run import CONV, MACHINE, OREPA, full_run

from harness.errors import HarnessError, UnknownName
from harness.report.check_text import render_check
from harness.report.github import SUMMARY_BYTES, summary, write_summary
from harness.verdict import check, make_baseline
from harness.verdict.rows import Check, Row
from harness.verdict.rules import Verdict

BASELINE = make_baseline(full_run())


def test_what_changed_comes_first_and_what_did_not_is_a_number():
    printed = render_check(check(full_run(1, slow=2, extra=512), BASELINE))
    assert "280,000,000 B" in printed
    assert "+512 B" in printed
    assert f"repeat orepa: harness run suites/quick.yaml --only {OREPA}" in printed
    assert printed.splitlines()[-1] == "3 REGRESSED, 17 SAME; 0 cells failed; exit 1"
    assert "SAME " not in printed.rpartition("\n")[0]


def test_failures_and_a_changed_machine_are_said():
    run = full_run(1).fail(CONV, "oom", "killed by the kernel", metric="params")
    printed = render_check(check(run, {**BASELINE, "fingerprint": {**BASELINE["fingerprint"], "machine": {}}}))
    refusal = (
        "times on cpu are not compared (cpu model: unknown then, Some CPU now; threads: unknown then, 2 now): make"
    )
    assert printed.count(refusal) == 1
    assert "failed: " + CONV + ": oom: params: killed by the kernel" in printed
    assert printed.endswith("exit 3")


def test_github_gets_one_escaped_line_per_annotation():
    printed = render_check(check(full_run(1, extra=512), BASELINE), "github")
    (line,) = [line for line in printed.splitlines() if line.startswith("::")]
    assert line.startswith(
        "::error title=REGRESSED%3A orepa%3A saved_memory::orepa: saved_memory: 280,000,000 B -> 280,000,512 B ("
    )
    assert "%0Arepeat: harness run" in line


def test_an_annotation_for_what_does_not_gate_is_a_notice():
    row = Row("c", "50% off, a:b\n", "g", "m", "", Verdict.REGRESSED, gated=False)
    (line, _) = render_check(Check("run", "suite", (row,), {}), "github").splitlines()
    assert line.startswith("::notice title=REGRESSED (no gate)%3A 50%25 off%2C a%3Ab%0A%3A m::")


def test_json_is_json_without_nan():
    value = json.loads(render_check(check(full_run(1, slow=2), BASELINE), "json"), parse_constant=pytest.fail)
    assert value["exit_code"] == 1
    assert value["counts"]["REGRESSED"] == 2
    assert len(value["rows"]) == 20
    assert {"cell", "label", "group", "metric", "form", "before", "now", "ratio", "low", "high", "rounds", "reason",
            "command"} <= set(value["rows"][0])  # fmt: skip


def test_many_undecided_rows_do_not_bury_the_rest():
    rows = tuple(Row(f"c{i}", f"c{i}", "g", "m", "", Verdict.INCONCLUSIVE) for i in range(50))
    printed = render_check(Check("run", "suite", rows, {}))
    assert "... and 20 more INCONCLUSIVE" in printed


def test_an_empty_check_says_so():
    assert render_check(Check("run", "suite", (), {})).endswith("nothing to compare; 0 cells failed; exit 5")


def test_advice_is_called_advice_and_the_warning_is_given_once():
    result = check(full_run(1, slow=2, fingerprint=replace(MACHINE, versions={"torch": "2.15.0"})), BASELINE)
    warning = "times on cpu are advice and fail nothing (torch: 2.14.1 then, 2.15.0 now)"
    printed = render_check(result)
    assert printed.count("REGRESSED (advice)") == 2
    assert printed.count(warning) == 1
    assert printed.splitlines()[-1] == "2 REGRESSED (2 cannot fail), 18 SAME; 0 cells failed; exit 0"
    annotated = render_check(result, "github").splitlines()
    assert [line.split(" ")[0] for line in annotated[:-1]] == ["::notice"] * 3
    assert annotated[0].endswith(warning)
    value = json.loads(render_check(result, "json"))
    assert value["notes"] == [warning]
    assert {(row["verdict"], row["gated"]) for row in value["rows"] if row["standing"] == "comparable"} == {
        ("REGRESSED", False), ("SAME", False),
    }  # fmt: skip


def test_why_nothing_was_compared_is_in_every_format():
    result = Check("run", "suite", (Row("c", "c", "g", "m", "", Verdict.NEW),), {}, against="main (abc)")
    why = "nothing was compared: main (abc) has none of this run's gated readings"
    assert render_check(result).splitlines()[-2] == why
    assert render_check(result).splitlines()[0] == "run against main (abc) of suite suite"
    assert render_check(result, "github").splitlines()[0] == f"::error title=nothing was compared::{why}"
    assert json.loads(render_check(result, "json"))["nothing"] == why
    assert f"**{why}**" in summary(result)


def test_another_format_is_refused():
    with pytest.raises(UnknownName, match="github"):
        render_check(Check("run", "suite", (), {}), "githb")


# annotations, as many as GitHub keeps


def many(verdict: Verdict, number: int, gated: bool = True) -> tuple[Row, ...]:
    return tuple(Row(f"c{i}", f"b{i}", "g", "m", "", verdict, gated, command=f"run c{i}") for i in range(number))


def types(check_: Check) -> Counter[str]:
    *lines, _ = render_check(check_, "github").splitlines()
    found = [line[2:].split(" ")[0] for line in lines]
    assert found == sorted(found, key=["error", "warning", "notice"].index), "errors first"
    return Counter(found)


def test_what_fails_the_check_is_an_error_with_strict_too():
    rows = many(Verdict.MISSING, 1) + many(Verdict.INCONCLUSIVE, 1) + many(Verdict.SAME, 1)
    assert types(Check("run", "suite", rows, {})) == {"warning": 1, "notice": 1}
    assert types(Check("run", "suite", rows, {}, strict=True)) == {"error": 2}


def test_ten_annotations_of_a_type_are_all_shown():
    rows = many(Verdict.REGRESSED, 10) + many(Verdict.MISSING, 10) + many(Verdict.INCONCLUSIVE, 10)
    assert types(Check("run", "suite", rows, {})) == {"error": 10, "warning": 10, "notice": 10}


def test_more_than_ten_are_counted_in_one_last_notice():
    rows = many(Verdict.REGRESSED, 12) + many(Verdict.MISSING, 3) + many(Verdict.INCONCLUSIVE, 30)
    result = Check("run", "suite", rows, {"c": "oom", "d": ""})
    assert types(result) == {"error": 10, "warning": 3, "notice": 10}
    *_, last, tally = render_check(result, "github").splitlines()
    assert last.startswith("::notice title=and 25 more::not annotated: 4 errors, 21 notices; ")
    assert tally.endswith("2 cells failed; exit 1")


# the job summary


IN_A_CELL = 4
"""How deep text lies in a table: table, head or body, row, cell."""


def parsed(markdown: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(markdown)


def cells_of(tokens: list[Token]) -> list[list[list[str]]]:
    """Every table as a Markdown renderer sees it: rows of cells, in which nothing may be anything but text."""
    tables: list[list[list[str]]] = []
    for token in tokens:
        assert token.type != "html_block"
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and token.level == IN_A_CELL:
            children = token.children or []
            assert {child.type for child in children} <= {"text", "text_special"}
            tables[-1][-1].append("".join(child.content for child in children))
    return tables


def test_the_summary_says_what_happened_and_how_to_repeat_it():
    result = check(full_run(1, slow=2, extra=512).fail(CONV, "oom", "no memory", metric="macs"), BASELINE)
    text = summary(result)
    assert text.startswith(
        "## harness check: regressed\n\nresults/runs/quick/now against the baseline of suite quick: 3"
    )
    counts, changed = cells_of(parsed(text))
    assert counts == [["verdict", "readings", "of them failing"], ["REGRESSED", "3", "3"], ["SAME", "17", "0"]]
    assert changed[0] == ["verdict", "cell", "reading", "before", "now", "now / before", "rounds", "why"]
    assert [row[:3] for row in changed[1:]] == [
        ["REGRESSED", "orepa", "latency (train)"], ["REGRESSED", "orepa", "saved_memory"],
        ["REGRESSED", "orepa", "train_step"],
    ]  # fmt: skip
    assert changed[2][3:] == ["280,000,000 B", "280,000,512 B", "1.000", "1", "+512 B"]
    assert changed[3][5].startswith("1.998 [1.78, ")
    assert f"- {CONV}: oom: macs: no memory" in text
    assert text.endswith(f"```sh\nharness run suites/quick.yaml --only {OREPA}  # orepa\n```\n")


def test_a_summary_may_be_of_another_command():
    result = replace(check(full_run(1), BASELINE), run="HEAD", against="main (abc)")
    text = summary(result, "harness ab")
    assert text.startswith("## harness ab: passed\n\nHEAD against main (abc) of suite quick: 20 SAME")
    assert len(cells_of(parsed(text))) == 1, "nothing changed, so only the counts are a table"


def test_at_most_fifty_rows_and_those_that_fail_come_first():
    rows = many(Verdict.MISSING, 40) + many(Verdict.IMPROVED, 30) + many(Verdict.REGRESSED, 5, gated=False)
    text = summary(Check("run", "suite", (*many(Verdict.REGRESSED, 1, gated=False), *rows), {}, strict=True))
    _, changed = cells_of(parsed(text))
    assert len(changed) == 51
    assert {row[0] for row in changed[1:41]} == {"MISSING"}
    assert "\nand 26 more (`--format json` has them all)\n" in text


def test_many_failed_cells_and_commands_are_counted():
    text = summary(Check("run", "suite", many(Verdict.REGRESSED, 70), {f"c{i}": "oom" for i in range(70)}))
    assert text.count("- c") == 50
    assert "- and 20 more" in text
    assert "\nrun c49  # b49\n# and 20 more\n" in text


@pytest.mark.parametrize(("status", "words"), [((), "nothing compared"), (("c",), "cells failed")])
def test_an_empty_check_has_a_summary_too(status, words):
    assert summary(Check("run", "suite", (), dict.fromkeys(status, "oom"))).startswith(f"## harness check: {words}\n")


nasty = st.text(
    st.one_of(st.sampled_from("|`\\\n\r<>&*_[]()#$~!-+=:@ \x1b\0\u2028"), st.characters()), min_size=1, max_size=40
)


def shown(text: str) -> str:
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in " ".join(text.split()))


@settings(max_examples=200, deadline=None)
@given(nasty, nasty, nasty, nasty)
@example("a", "g", "r", "harness\n```\n````\nrun")
def test_no_name_breaks_the_summary_and_every_name_is_shown_as_it_is(label, group, reason, command):
    rows = tuple(
        Row("c", label, group if place else "g", "m", "", Verdict.REGRESSED, reason=reason, command=command)
        for place in range(2)
    )
    text = summary(Check(label, group, rows, {label: reason}, (reason,)))
    tokens = parsed(text)
    _, changed = cells_of(tokens)
    assert [len(row) for row in changed] == [8, 8, 8]
    named = [f"{label} (g)", f"{label} ({group})"] if group != "g" else [label] * 2
    assert [row[1] for row in changed[1:]] == [shown(name).strip() for name in named]
    assert [row[7] for row in changed[1:]] == [shown(reason)] * 2
    (fence,) = [token for token in tokens if token.type == "fence"]
    assert tokens[-1] is fence, "a command does not end its block"
    assert [token.content for token in tokens if token.type == "inline" and token.level == 1][-1] == "To reproduce"


def test_a_long_reason_is_cut_and_the_whole_stays_within_a_mebibyte():
    rows = tuple(replace(row, reason="|" * 10_000, label="<" * 10_000, group=f"{'&' * 1000}{i}")
                 for i, row in enumerate(many(Verdict.REGRESSED, 60)))  # fmt: skip
    result = Check("run" * 1000, "suite", rows, {f"c{i}": "`" * 10_000 for i in range(60)}, ("note" * 1000,) * 100)
    text = summary(result)
    assert len(text.encode()) <= SUMMARY_BYTES
    assert "…" in text
    small = summary(result, room=20_000)
    assert small.startswith("## harness check: regressed")
    assert len(small.encode()) <= 20_000
    assert summary(result, room=10) == ""


def test_the_summary_is_appended_to_the_file_that_the_environment_names(tmp_path):
    result, path = check(full_run(1), BASELINE), tmp_path / "summary.md"
    assert write_summary(result, {}) is None
    assert write_summary(result, {"GITHUB_STEP_SUMMARY": ""}) is None
    assert list(tmp_path.iterdir()) == []
    environ = {"GITHUB_STEP_SUMMARY": str(path)}
    assert write_summary(result, environ) == path
    assert path.read_text() == summary(result)
    path.write_text("what a step wrote before, and no end of line")
    assert write_summary(result, environ, "harness ab") == path
    assert path.read_text().endswith("no end of line\n\n" + summary(result, "harness ab"))


def test_a_step_that_has_used_its_room_gets_less_or_nothing(tmp_path):
    path = tmp_path / "summary.md"
    result = Check("run", "suite", many(Verdict.REGRESSED, 60), {})
    environ = {"GITHUB_STEP_SUMMARY": str(path)}
    path.write_text("x" * (SUMMARY_BYTES - 2000))
    assert write_summary(result, environ) == path
    assert 2000 < path.stat().st_size <= SUMMARY_BYTES
    assert "and 55 more" in path.read_text()
    path.write_text("x" * SUMMARY_BYTES)
    assert write_summary(result, environ) is None
    assert path.stat().st_size == SUMMARY_BYTES


def test_a_summary_that_cannot_be_written_is_said_with_a_remedy(tmp_path):
    with pytest.raises(HarnessError, match="unset it"):
        write_summary(Check("run", "suite", (), {}), {"GITHUB_STEP_SUMMARY": str(tmp_path / "no" / "such" / "file")})
