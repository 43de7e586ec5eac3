"""What stands under published figures: captions, notes, formats."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from published_run import EIGHTEEN, TABLE_4, THIRTY_FOUR, entry, measured, tables_of

from harness.published import figures
from harness.records import Reading, Record, Status, TaskKind
from harness.report.exporters import EXPORTERS
from harness.report.page import RunReport
from harness.report.writing import report


def test_the_caption_says_whose_numbers_they_are_each_once():
    (one,) = tables_of(measured())
    caption = one.table.caption
    assert caption.startswith("OREPA (CVPR 2022), Table 4. Published: 4x NVIDIA Tesla V100 (32 GB); PyTorch 1.9.0; ")
    assert caption.count("V100") == caption.count("120 epochs") == 1
    assert (
        "This run: train_memory, peak of live tensors over a training step; resnet18, k=3, cpu, float32, batch 8, 96 px"
        in caption
    )
    assert "more than the reference conv. Saved: the share of what dbb adds" in caption
    assert "in GB (per GPU) to the nearest 0.1 GB, so their differences may be off by as much" in caption


def test_a_unit_that_the_suite_reads_otherwise_is_said():
    (one,) = tables_of(measured(entry(unit="GiB")))
    assert one.table.caption.endswith(
        "Published in GB (per GPU), read as GiB, to the nearest 0.1 GiB, so their differences may be off by as much"
    )


def test_readings_of_plots_have_their_own_precision():
    digitised = next(one for one in figures() if "digitised" in one.unit and one.unit.startswith("GB"))
    (one,) = tables_of(measured(entry(figures={digitised.id: TABLE_4["OREPA-T4-002"]}, saved_from=None)))
    assert one.table.caption.endswith("Published in GB; digitised +-0.07")


def test_assumptions_stand_once_under_the_table_and_the_note_follows():
    run = measured(entry(note="the CUDA context"))
    for one in EIGHTEEN:
        facts = {"assumptions": ["no workspace", "float32"], "counted": "live storages"}
        reading = Reading("train_memory", "train", "B", (1.0,), facts)
        run.taken.append(Record("t", TaskKind.CELL, one.id, "train_memory", 0, "f", Status.OK, (reading,)))
    (printed,) = tables_of(run)
    assert printed.notes[:3] == ("no workspace", "float32", "the CUDA context")
    assert printed.notes[3].startswith("Source of OREPA-T4-002, OREPA-T4-005, OREPA-T4-008: JUGGHM/OREPA_CVPR2022")
    assert "over a training step; live storages; resnet18" in printed.table.caption


@pytest.fixture(scope="module")
def nasty():
    """The report of a run whose title and note mean something in some format; it has no pictures."""
    return without_pictures(measured(entry(title="A & <B>", note="50% of <it>")))


def without_pictures(run):
    made = RunReport(run)
    made.pictures = []
    return made


@pytest.mark.parametrize("format", ["text", "md", "tex", "html"])
def test_every_format_prints_it_before_the_groups(format, nasty):
    page = EXPORTERS[format].render(nasty)
    assert page.index("5.500") < page.index("ratios to conv")
    for words in ("69.7", "80.0", "yardstick", "V100", "OREPA-T4-008: JUGGHM"):
        assert words in page.replace(r"\_", "_"), words
    escaped = {"tex": r"50\% of \textless{}it\textgreater{}", "text": "50% of <it>"}
    assert escaped.get(format, "50% of &lt;it&gt;") in page
    assert {"tex": r"A \& \textless{}B", "text": "A & <B>", "md": "A & &lt;B&gt;", "html": "A &amp; &lt;B&gt;"}[
        format
    ] in page


def test_a_terminal_is_wide_enough():
    ids = {**TABLE_4}
    lines = report(measured(entry(figures=ids), cells=[*EIGHTEEN, *THIRTY_FOUR])).splitlines()
    start = lines.index("Table 4")
    block = lines[start : lines.index("", start + 2)]
    assert len(block) > 0
    assert max(map(len, lines[start : start + 25])) <= 140


def test_csv_stays_the_tidy_frame():
    run = measured()
    assert pd.read_csv(io.StringIO(report(run, "csv")))["value"].tolist() == run.frame()["value"].tolist()


def test_a_suite_without_figures_prints_nothing_of_the_kind():
    run = measured()
    run.suite_text = "axes: {block: conv}"
    made = without_pictures(run)
    for format in ("text", "md", "tex", "html"):
        assert "ublished" not in EXPORTERS[format].render(made)
