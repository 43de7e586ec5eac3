"""Tables, sentences and files made from synthetic runs."""

from __future__ import annotations

import io
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from synthetic_run import CONV, DBB, OREPA, FakeRun, cell, cells_frame, full_run

from harness.errors import HarnessError, UnknownName
from harness.report.cell_text import show
from harness.report.environment import hardware
from harness.report.exporters import EXPORTERS
from harness.report.exporters.latex import latex_escape
from harness.report.exporters.markdown import markdown_escape
from harness.report.exporters.text import text_table
from harness.report.page import RunReport
from harness.report.sentences import sentences
from harness.report.tables import GroupView, tables, views
from harness.report.writing import report, write_all
from harness.units import digits, exact, full_digits, gib, percent, readable, scale_for

NASTY = "a_b & 50% #{}~^\\ $x$ <b>|"


def blocks(*names: str, **kwargs) -> FakeRun:
    return FakeRun(cells_frame([cell(name) for name in names], **kwargs))


@pytest.fixture(scope="module")
def whole() -> RunReport:
    """The report of a run with every metric, for tests that only read it; it has no pictures."""
    made = RunReport(full_run())
    made.pictures = []
    return made


def answers(groups: list[GroupView]) -> list[str]:
    return [line for view in groups for line in sentences(view)]


def cells_of(groups: list[GroupView], heading: str) -> dict[str, str]:
    """The texts of the first column with this heading, by variant."""
    for view in groups:
        for table in tables(view):
            for column in table.columns:
                if column.heading[0] == heading:
                    return dict(zip(table.labels, column.cells, strict=True))
    raise AssertionError(f"no column {heading}")


@pytest.mark.parametrize("storage", ["python", "pyarrow"])
def test_a_run_without_times_is_reported_wherever_pandas_keeps_text(storage):
    """pandas takes pyarrow's memory for text where it is installed; a run of counts has no times to make rates of."""
    if storage == "pyarrow":
        pytest.importorskip("pyarrow")
    with pd.option_context("mode.string_storage", storage):
        run = blocks("conv", "orepa").put(CONV, "macs", 10, form="train")
        assert run.frame()["metric"].tolist() == ["macs"]
        assert "macs" in report(run, "text")


# units


@pytest.mark.parametrize(
    ("value", "unit", "printed"),
    [
        (0.0123, "s", "12.30 ms"), (3e-7, "s", "300.0 ns"), (0.52 * 2**30, "B", "532.5 MiB"), (512, "B", "512 B"),
        (1.117e7, "1", "11.17 M"), (3.1e-16, "1", "3.1e-16"), (1.82e9, "MAC", "1.820 GMAC"),
        (0.973, "fraction", "97.30 %"), (0.0, "B", "0 B"),
        (float("nan"), "s", "nan s"), (7, "furlong", "7 furlong"), (57e9, "MAC/s", "57.00 GMAC/s"),
    ],
)  # fmt: skip
def test_si_becomes_readable_only_in_print(value, unit, printed):
    assert readable(value, unit) == printed


def test_a_column_has_one_unit_chosen_by_its_middle():
    assert scale_for("s", [0.02, 0.5, 3.0]).name == "ms"
    assert scale_for("s", []).name == "s"
    assert digits(123456.0) == "123456"


def test_shares_have_two_digits_or_are_whole_and_counts_are_told_to_the_last_one():
    assert [percent(share) for share in (0.0043, 0.12, 0.996, 1.3)] == ["0.43 %", "12 %", "100 %", "130 %"]
    assert (percent(0.00001), percent(0.00001, least=0.0001)) == ("0.001 %", "0 %")
    assert (exact(1234567, "B"), exact(1234567, "1"), exact(float("nan"), "B")) == ("1,234,567 B", "1,234,567", None)
    assert (full_digits(123456789.4), full_digits(0.5), gib(2.0**30)) == ("123456789", "0.5000", "1.0 GiB")


# tables


def test_a_table_has_a_row_per_variant_and_ratios_to_the_reference(whole):
    step, memory = (cells_of(whole.groups, name) for name in ("train step", "train memory"))
    assert list(step) == ["conv", "orepa"]
    assert re.fullmatch(r"\d{3}\.\d ±\d\.\d%", step["orepa"])
    assert memory["orepa"] == "534.1 (1.40x)"
    against = cells_of(whole.groups, "vs conv")
    assert against["conv"] == "reference"
    assert re.fullmatch(r"1\.4\dx \[1\.3\d, 1\.4\d\]", against["orepa"])


def test_a_failed_variant_prints_its_status_and_what_was_not_asked_a_dash():
    run = blocks("conv", "orepa", "dbb").put(CONV, "params", 5).put(DBB, "params", 6).put(CONV, "train_memory", 7)
    made = RunReport(run.fail(OREPA, "oom"))
    assert cells_of(made.groups, "params") == {"conv": "5", "orepa": "oom", "dbb": "6 (1.20x)"}
    assert cells_of(made.groups, "train memory") == {"conv": "7", "orepa": "oom", "dbb": "–"}
    assert "orepa" in EXPORTERS["text"].render(made).split("Not measured")[1]


def test_not_a_number_is_said_and_not_hidden():
    shown = views(blocks("conv", "orepa").put(CONV, "fusion_error", 1e-7).put(OREPA, "fusion_error", np.nan))
    assert cells_of(shown, "fusion error")["orepa"] == "not a number"
    assert answers(shown) == ["orepa does not fold to a number."]


def test_without_a_reference_there_are_no_ratios_and_no_sentences():
    run = blocks("conv", "orepa", reference=None).put(CONV, "train_step", [0.1] * 4).put(OREPA, "params", 5)
    made = RunReport(run)
    assert answers(made.groups) == []
    text = EXPORTERS["text"].render(made)
    assert "vs" not in text
    assert "reference" not in text


def test_a_column_of_zeros_is_left_out():
    run = blocks("conv", "orepa").put(CONV, "macs_kernel", 0).put(OREPA, "macs_kernel", 0).put(CONV, "params", 1)
    assert "macs kernel" not in report(run)


def test_a_wide_interval_is_not_written_as_plus_or_minus():
    run = blocks("conv", "orepa").put(CONV, "train_step", [0.1, 0.4, 0.2, 0.9]).put(OREPA, "train_step", [0.1] * 4)
    assert re.fullmatch(r"291\.3 \[\d+\.\d+, \d+\]", cells_of(views(run), "train step")["conv"])


def test_no_changed_prediction_is_worth_saying():
    run = blocks("conv", "orepa").put(CONV, "changed_predictions", 0).put(OREPA, "changed_predictions", 0)
    made = RunReport(run)
    assert cells_of(made.groups, "changed predictions") == {"conv": "0", "orepa": "0"}
    assert "vs conv" not in EXPORTERS["text"].render(made)


def test_kernel_sizes_can_be_what_is_compared():
    sizes = [cell(kernel_size=k) for k in (1, 3, 5)]
    run = FakeRun(cells_frame(sizes, compared="kernel_size", reference=3))
    for one in sizes:
        run.put(one.id, "latency", 0.01 * one.kernel_size * np.ones(4), "fused")
    shown = views(run)
    assert cells_of(shown, "latency")["k=5"] == "50.00 ±0.0%"
    assert any(line.startswith("k=1 runs fused 3.00x") and "faster than k=3" in line for line in answers(shown))


def test_five_variants_with_every_metric_fit_a_terminal():
    made = RunReport(many())
    lines = EXPORTERS["text"].render(made).splitlines()
    tabular = [line for line in lines if not line.endswith(".")]
    assert max(map(len, tabular)) <= 140
    (first, *_) = [table for view in made.groups for table in tables(view)]
    assert max(len(line) for line in text_table(first, width=60).splitlines()) <= 60


def many() -> FakeRun:
    cells = [cell(block, kernel_size=k) for k in (3, 5) for block in ("conv", "repvgg", "acb", "dbb", "orepa")]
    run, rng = FakeRun(cells_frame(cells)), np.random.default_rng(0)
    for one in cells:
        for metric in ("params", "macs", "saved_memory", "train_memory"):
            run.put(one.id, metric, 123456789, "train")
        for form in ("train", "fused"):
            run.put(one.id, "latency", 0.05 * np.exp(rng.normal(0, 0.02, 5)), form)
            run.put(one.id, "accuracy", [0.9, 0.91, 0.92, 0.93], form)
        run.put(one.id, "train_step", 0.2 * np.exp(rng.normal(0, 0.02, 5)), "train")
        for metric in ("fusion_error", "fusion_error_max", "fusion_error_rim", "fusion_error_interior"):
            run.put(one.id, metric, 3e-7, "fused")
    return run


# sentences


def test_the_answer_in_a_sentence(whole):
    (line,) = answers(whole.groups)
    assert re.match(r"orepa trains 1\.4\dx \[1\.\d\d, 1\.\d\d\] slower than conv, ", line)
    assert "is not distinguishable from conv in running time once fused (1.00x [0.97, 1.03])" in line
    assert "adds 152.6 MiB to the peak of training" in line
    assert "folds to 3e-07" in line


def test_a_faster_variant_is_faster_by_the_inverse_with_its_interval_turned_round():
    rng = np.random.default_rng(0)
    times = np.exp(rng.normal(0, 0.01, 8))
    run = blocks("conv", "orepa").put(CONV, "train_step", 2 * times).put(OREPA, "train_step", times[::-1])
    (line,) = answers(views(run))
    ratio, low, high = map(float, re.search(r"trains (\S+)x \[(\S+), (\S+)\] faster", line).groups())
    assert low <= ratio <= high
    assert ratio == pytest.approx(2.0, abs=0.02)


def test_one_round_gives_a_ratio_and_no_verdict():
    (line,) = answers(views(blocks("conv", "orepa").put(CONV, "train_step", 1.0).put(OREPA, "train_step", 1.5)))
    assert line == "orepa trains in 1.50x the time of conv (one round, no interval)."


def test_less_memory_equal_memory_and_what_failed():
    run = blocks("conv", "orepa", "dbb").put(CONV, "saved_memory", 2**21).put(OREPA, "saved_memory", 2**20)
    run.put(DBB, "saved_memory", 2**21).fail(DBB, "timeout", metric="accuracy")
    orepa, dbb = answers(views(run))
    assert orepa == "orepa takes 1.000 MiB off what is kept for backward."
    assert dbb == "dbb adds nothing to what is kept for backward, has no accuracy (timeout)."


def test_where_only_counts_were_taken_they_are_the_answer():
    run = blocks("conv", "orepa", "dbb").put(CONV, "params", 400, "train").put(OREPA, "params", 100, "train")
    run.put(CONV, "macs", 10, "train").put(OREPA, "macs", 20, "train").put(DBB, "params", 600, "train")
    assert answers(views(run)) == [
        "orepa has 0.25x the parameters and 2.00x the MACs of conv.",
        "dbb has 1.50x the parameters of conv.",
    ]


def test_what_was_not_measured_at_all():
    run = blocks("conv", "orepa", "dbb").put(CONV, "params", 5).fail(OREPA, "killed")
    assert answers(views(run)) == ["orepa was not measured (killed).", "dbb was not measured beside conv."]


# formats


def test_every_format_says_the_hardware_the_rounds_and_the_confidence(whole):
    for format in ("text", "md", "tex", "html"):
        page = EXPORTERS[format].render(whole)
        assert "Some CPU @ 2.0 GHz, 2 threads, torch 2.14.1" in page
        assert "10 rounds" in page
        assert "99" in page


def test_hardware_is_found_wherever_it_is_and_missing_is_said():
    nested = {"devices": {"cpu": {"facts": {"name": "cpu", "model": "EPYC", "threads": 2}}}, "versions": {"torch": "2"}}
    assert hardware(nested) == "EPYC, 2 threads, torch 2"
    assert hardware({}) == "hardware not recorded"


def test_csv_is_the_tidy_frame_in_si_units(whole):
    read = pd.read_csv(io.StringIO(EXPORTERS["csv"].render(whole)))
    np.testing.assert_allclose(read["value"], whole.run.frame()["value"])
    assert {"s", "B", "fraction"} <= set(read["unit"])


def test_latex_survives_whatever_a_user_writes():
    first, second = latex_escape(NASTY).split(r" \$x\$ ")
    assert first == r"a\_b \& 50\% \#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert second == r"\textless{}b\textgreater{}\textbar{}"
    page = report(nasty(), "tex")
    assert latex_escape(NASTY) in page
    assert not re.search(r"(?<!\\)[&#_]", page.replace(" & ", ""))
    assert page.count("\\toprule") == page.count("\\bottomrule") > 0


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(tmp_path):
    document = (
        r"\documentclass{article}\usepackage{booktabs,textcomp}\usepackage[T1]{fontenc}\begin{document}%s\end{document}"
    )
    (tmp_path / "a.tex").write_text(document % report(nasty(), "tex"))
    subprocess.run(["pdflatex", "-halt-on-error", "a.tex"], cwd=tmp_path, check=True, capture_output=True)


def nasty() -> FakeRun:
    reference, other = cell(NASTY), cell("[x]" + NASTY)
    run = FakeRun(
        cells_frame([reference, other], reference=NASTY), name=NASTY, suite_text="</pre><script>alert(1)</script>"
    )
    run.environment["host"] = "<script>alert(2)</script>"
    return run.put(reference.id, "latency", [1.0, 1.1, 0.9, 1.0], "fused").put(
        other.id, "latency", [2.0, 2.1, 1.9, 2.0], "fused"
    )


def test_markdown_keeps_user_text_in_its_cell():
    assert markdown_escape("a|b*_<c>") == r"a\|b\*\_&lt;c&gt;"
    rows = [line for line in report(nasty(), "md").splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_html_is_one_file_and_escapes_what_users_write():
    page = report(nasty(), "html")
    assert "<script>" not in page
    assert "data:image/png;base64," in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_another_format_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="html"):
        report(full_run(), "htm")


def test_a_run_leaves_its_reports_beside_its_journal(tmp_path):
    cells = [cell(block, kernel_size=k) for k in (3, 5) for block in ("conv", "orepa")]
    run = FakeRun(cells_frame(cells), path=tmp_path)
    for one in cells:
        run.put(one.id, "latency", [0.05, 0.051, 0.049, 0.05], "fused")
    written = write_all(run)
    names = {str(path.relative_to(tmp_path)) for path in written}
    assert {f"report.{ending}" for ending in ("txt", "md", "csv", "tex", "html")} < names
    assert {"figures/ratios-1.png", "figures/ratios-2.png", "figures/kernel-size.png"} < names
    assert all(path.stat().st_size > 0 for path in written)
    assert (tmp_path / "figures/ratios-1.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_in_which_everything_failed_still_reports(tmp_path):
    run = blocks("conv", "orepa").fail(CONV).fail(OREPA, "timeout")
    run.path = tmp_path
    assert write_all(run)
    assert "nothing was measured" in report(run)


def test_groups_that_a_stopped_run_did_not_reach_are_named_and_have_no_section():
    run = blocks("conv", "orepa")
    later = cells_frame([cell("conv", image_size=224), cell("orepa", image_size=224)])
    run.cells = pd.concat([run.cells, later])
    run.put(CONV, "params", 10, form="train")
    made = RunReport(run)
    reached, left = EXPORTERS["text"].render(made).split("Not measured")
    assert "96 px" in reached
    assert "224 px" not in reached
    assert "224 px: not reached" in left
    for format in ("md", "tex", "html"):
        assert EXPORTERS[format].render(made).count("not reached") == 1


def test_report_can_write_where_it_is_told(tmp_path):
    content = report(full_run(), "md", tmp_path / "new" / "r.md")
    assert (tmp_path / "new" / "r.md").read_text() == content


# show


def test_show_gives_samples_trouble_and_the_command():
    run = full_run().fail(OREPA, "timeout", "600 s", metric="accuracy")
    shown = show(run, OREPA[:5])
    assert "train_step: median" in shown
    assert "10 samples in 10 rounds" in shown
    assert "saved_memory: 267.0 MiB (280,000,000)" in shown
    assert "accuracy, round 0: timeout: 600 s" in shown
    assert "Traceback: deep inside" in shown
    assert "last words" in shown
    assert shown.endswith(f"repeat: {run.command_for(OREPA)}\n")


def test_show_refuses_what_is_no_cell_or_more_than_one():
    with pytest.raises(UnknownName, match="no cell is called 'zzz'"):
        show(full_run(), "zzz")
    with pytest.raises(HarnessError, match="2 cells begin with ''"):
        show(full_run(), "")
