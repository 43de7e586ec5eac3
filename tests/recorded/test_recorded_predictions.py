"""The recorded run of suites/papers/orepa-memory.yaml against the paper's table 4, computed from the raw numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.published import figure
from harness.report.writing import report
from harness.store.run import open_run

RUN = open_run(Path(__file__).parents[2] / "results" / "studies" / "orepa-memory")

TABLE = {
    # plain, DBB, OREPA: published ids
    "resnet18": ("OREPA-T4-002", "OREPA-T4-005", "OREPA-T4-008"),
    "resnet34": ("OREPA-T4-011", "OREPA-T4-014", "OREPA-T4-017"),
    "resnet50": ("OREPA-T4-020", "OREPA-T4-023", "OREPA-T4-026"),
    "resnet101": ("OREPA-T4-029", "OREPA-T4-032", "OREPA-T4-035"),
}
PUBLISHED_SHARES = {"resnet18": 70, "resnet34": 75, "resnet50": 74, "resnet101": 69}


def predicted(backbone):
    """GB of plain, DBB, OREPA as the authors evaluate it."""
    found = {}
    for record in RUN.records():
        cell = RUN.planned_cells[record.cell]
        if (cell.part, cell.backbone.name) == ("resnets", backbone):
            found[cell.block.label] = record.readings[0].values[0] / 1e9
    return found["conv"], found["dbb"], found["orepa(composition=plain)"]


@pytest.mark.parametrize("backbone", TABLE)
def test_what_dbb_adds_is_within_a_fifth_of_what_the_paper_printed(backbone):
    plain, dbb, _ = predicted(backbone)
    printed_plain, printed_dbb, _ = (figure(id_).value for id_ in TABLE[backbone])
    assert dbb - plain == pytest.approx(printed_dbb - printed_plain, rel=0.2)


@pytest.mark.parametrize("backbone", TABLE)
def test_the_share_that_orepa_saves_is_within_fifteen_points(backbone):
    plain, dbb, orepa = predicted(backbone)
    a, b, c = (figure(id_).value for id_ in TABLE[backbone])
    published, ours = 100 * (b - c) / (b - a), 100 * (dbb - orepa) / (dbb - plain)
    assert round(published) == PUBLISHED_SHARES[backbone]
    assert abs(ours - published) < 15


def test_the_report_prints_them_side_by_side_and_says_what_the_rest_may_be():
    text = report(RUN, "text")
    assert "what the rest may be" in text.lower()
    row = next(line for line in text.splitlines() if line.startswith("resnet18, dbb"))
    assert row.split()[2:7] == ["7.5", "4.843", "+3.3", "+3.312", "1.00"]
    for said in ("table 4", "figure 8(a)", "the CPU's operators", "no workspaces", "Nor does it say"):
        assert said in " ".join(text.split())
