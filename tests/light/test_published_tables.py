"""The published figures and the run's own, side by side: the numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from published_run import EIGHTEEN, GB, SUITE, TABLE_4, THIRTY_FOUR, column, entry, measured, run_of, tables_of
from synthetic_run import MACHINE

from harness.planning import plan
from harness.records import Reading, Record, Status, TaskKind, Variant
from harness.report.published_tables import published_tables
from harness.report.tables import views
from harness.report.writing import report
from harness.store.directory import describe
from harness.store.run import open_run


def test_the_numbers_are_those_done_by_hand():
    run = measured()
    printed = tables_of(run)
    assert column(printed, "published", "[GB]") == {"conv": "4.2", "dbb": "7.5", "orepa": "5.2"}
    assert column(printed, "this run", "[GB]") == {"conv": "2.000", "dbb": "5.500", "orepa": "2.700"}
    assert column(printed, "published", "added", "[GB]") == {"conv": "reference", "dbb": "+3.3", "orepa": "+1.0"}
    assert column(printed, "this run", "added", "[GB]") == {"conv": "reference", "dbb": "+3.500", "orepa": "+0.7000"}
    assert column(printed, "added, ours") == {"conv": "", "dbb": "1.06", "orepa": "0.70"}  # 3.5 / 3.3, 0.7 / 1.0
    # 1 - 1.0 / 3.3, 1 - 0.7 / 3.5
    assert column(printed, "published", "saved") == {"conv": "reference", "dbb": "yardstick", "orepa": "69.7"}
    assert column(printed, "this run", "saved") == {"conv": "reference", "dbb": "yardstick", "orepa": "80.0"}


def test_units_are_what_they_say():
    run = measured(entry(unit="GiB"))
    printed = tables_of(run)
    assert column(printed, "this run", "[GiB]")["conv"] == "1.863"  # 2e9 / 2**30
    assert column(printed, "added, ours")["dbb"] == "0.99"  # 3.5e9 / 2**30 / 3.3
    assert column(printed, "this run", "saved")["orepa"] == "80.0"


def test_groups_stand_together_and_are_told_apart():
    ids = list(TABLE_4)
    mixed = {id_: TABLE_4[id_] for id_ in [ids[3], ids[0], ids[4], ids[1], ids[5]]}
    run = measured(entry(figures=mixed), cells=[*EIGHTEEN, *THIRTY_FOUR])
    printed = tables_of(run)
    assert list(column(printed, "published", "[GB]").items()) == [
        ("resnet34, conv", "5.2"), ("resnet34, dbb", "11.1"), ("resnet34, orepa", "6.7"),
        ("resnet18, conv", "4.2"), ("resnet18, dbb", "7.5"),
    ]  # fmt: skip
    assert column(printed, "added, ours")["resnet34, dbb"] == "1.19"  # 7.0 / 5.9
    assert column(printed, "published", "saved")["resnet34, orepa"] == "74.6"  # 1 - 1.5 / 5.9
    assert tables_of(run)[0].table.corner == "backbone, block"


def test_without_a_yardstick_nothing_is_saved():
    (one,) = tables_of(measured(entry(saved_from=None)))
    assert [c.heading[-1] for c in one.table.columns] == ["[GB]", "[GB]", "[GB]", "[GB]", "/ published"]
    assert "saved" not in one.table.caption


def test_a_reference_without_a_figure_leaves_only_what_this_run_adds():
    figures = {id_: text for id_, text in TABLE_4.items() if id_ != "OREPA-T4-002"}
    run = measured(entry(figures=figures))
    printed = tables_of(run)
    assert column(printed, "published", "added") == {"dbb": "–", "orepa": "–"}
    assert column(printed, "this run", "added") == {"dbb": "+3.500", "orepa": "+0.7000"}
    assert column(printed, "added, ours") == {"dbb": "–", "orepa": "–"}
    assert column(printed, "published", "saved")["orepa"] == "–"
    assert column(printed, "this run", "saved")["orepa"] == "80.0"


def test_a_group_without_a_reference_has_values_and_no_differences():
    run = run_of(EIGHTEEN, entry(), reference=None)
    for one in EIGHTEEN:
        run.put(one.id, "train_memory", GB, "train")
    printed = tables_of(run)
    assert column(printed, "this run", "[GB]")["dbb"] == "1.000"
    for heading in ("published", "added"), ("this run", "added"), ("added, ours",), ("this run", "saved"):
        assert column(printed, *heading)["orepa"] == "–"


def test_a_failed_cell_shows_its_status_and_takes_its_numbers_along():
    run = run_of(EIGHTEEN, entry())
    conv, dbb, orepa = (one.id for one in EIGHTEEN)
    run.put(conv, "train_memory", 2 * GB, "train").put(orepa, "train_memory", 3 * GB, "train").fail(dbb, "oom")
    printed = tables_of(run)
    assert column(printed, "this run", "[GB]") == {"conv": "2.000", "dbb": "oom", "orepa": "3.000"}
    assert column(printed, "this run", "added") == {"conv": "reference", "dbb": "–", "orepa": "+1.000"}
    assert column(printed, "added, ours") == {"conv": "", "dbb": "–", "orepa": "1.00"}
    assert column(printed, "this run", "saved")["orepa"] == "–"
    assert column(printed, "published", "saved")["orepa"] == "69.7"


def test_a_failed_reference_leaves_values_alone():
    run = run_of(EIGHTEEN, entry())
    conv, dbb, orepa = (one.id for one in EIGHTEEN)
    run.fail(conv, "timeout").put(dbb, "train_memory", 3 * GB, "train").put(orepa, "train_memory", 2 * GB, "train")
    printed = tables_of(run)
    assert column(printed, "this run", "[GB]") == {"conv": "timeout", "dbb": "3.000", "orepa": "2.000"}
    assert column(printed, "this run", "added")["orepa"] == "–"


def test_a_run_in_which_nothing_was_measured_has_no_numbers():
    run = run_of(EIGHTEEN, entry()).fail(EIGHTEEN[0].id, "killed")
    printed = tables_of(run)
    assert column(printed, "this run", "[GB]") == {"conv": "killed", "dbb": "–", "orepa": "–"}


def test_cells_that_the_run_does_not_have_are_left_out():
    assert list(column(tables_of(measured(cells=EIGHTEEN[:2])), "published", "[GB]")) == ["conv", "dbb"]
    assert tables_of(measured(entry(figures={"OREPA-T4-011": TABLE_4["OREPA-T4-011"]}))) == []


def test_a_yardstick_that_adds_nothing_saves_nothing():
    run = run_of(EIGHTEEN, entry())
    for one in EIGHTEEN:
        run.put(one.id, "train_memory", GB, "train")
    printed = tables_of(run)
    assert column(printed, "this run", "saved")["orepa"] == "–"
    assert column(printed, "added, ours")["dbb"] == "0.00"


def test_a_reduction_is_a_share_of_the_groups_reference():
    fewer = {"kw-seed-003": 'block == "dbb"', "kw-seed-012": 'block == "orepa"'}
    run = run_of(EIGHTEEN, entry(metric="params", unit="%", saved_from=None, reduction=True, figures=fewer))
    for one, value in zip(EIGHTEEN, (11_689_512, 7_431_044, 4_031_768), strict=True):
        run.put(one.id, "params", value, "train")
    printed = tables_of(run)
    assert column(printed, "published", "[%]") == {"dbb": "36.45", "orepa": "65.10"}
    assert column(printed, "this run", "[%]") == {"dbb": "36.43", "orepa": "65.51"}
    (one,) = printed
    assert not any("added" in " ".join(each.heading) for each in one.table.columns)
    assert "by how much less than the reference conv" in one.table.caption


def test_times_have_their_interval_and_fractions_their_points():
    times = {"OREPA-T4-003": 'block == "conv"', "OREPA-T4-009": 'block == "orepa"'}
    run = run_of(EIGHTEEN, entry(metric="train_step", unit="s", saved_from=None, figures=times))
    run.put(EIGHTEEN[0].id, "train_step", [0.1] * 5, "train")
    run.put(EIGHTEEN[2].id, "train_step", [0.14, 0.15, 0.16, 0.15], "train")
    printed = tables_of(run)
    assert column(printed, "published", "[s]") == {"conv": "0.086", "orepa": "0.120"}
    assert re.fullmatch(r"0\.149\d \[0\.1\d+, 0\.1\d+\]", column(printed, "this run", "[s]")["orepa"])
    assert column(printed, "published", "added")["orepa"] == "+0.034"
    learned = {"OREPA-T4-001": 'block == "conv"', "OREPA-T4-007": 'block == "orepa"'}
    run = run_of(EIGHTEEN, entry(metric="accuracy", unit="%", saved_from=None, figures=learned))
    run.put(EIGHTEEN[0].id, "accuracy", 0.7, "train").put(EIGHTEEN[2].id, "accuracy", 0.705, "train")
    printed = tables_of(run)
    assert column(printed, "this run", "[%]") == {"conv": "70.00", "orepa": "70.50"}
    assert column(printed, "this run", "added") == {"conv": "reference", "orepa": "+0.5000"}
    assert column(printed, "added, ours")["orepa"] == "0.54"  # 0.5 / 0.92


def test_options_of_a_variant_can_be_asked_for():
    online = replace(EIGHTEEN[2], block=Variant("orepa", {"reparam": "offline"}))
    run = run_of([EIGHTEEN[0], online], entry(figures={"OREPA-T4-008": 'block.reparam == "offline"'}, saved_from=None))
    printed = tables_of(run)
    assert list(column(printed, "published", "[GB]")) == ["orepa(reparam=offline)"]


def test_what_cannot_be_printed_is_said(tmp_path):
    both = {
        "OREPA-T4-002": 'backbone == "resnet18"',
        "OREPA-T9-999": 'block == "dbb"',
        "OREPA-T4-008": TABLE_4["OREPA-T4-008"],
    }
    run = measured(entry(figures=both))
    (one,), problems = published_tables(run, views(run))
    assert one.table.labels == ("orepa",)
    assert problems == [
        "Table 4: OREPA-T4-002 speaks of 3 cells of this run",
        "Table 4: no published figure is called 'OREPA-T9-999'",
    ]
    run.suite_text = "published: [{title: x}]"
    assert "published figures: published.0.metric: Field required" in report(run)


@pytest.mark.parametrize("text", ["", "</pre>", "axes: [", "- a", "axes: {block: conv}"])
def test_a_text_that_names_no_figures_prints_none(text):
    run = measured()
    run.suite_text = text
    assert published_tables(run, views(run)) == ([], [])


def test_a_stored_run_answers_too(suite_of, tmp_path):
    suite = suite_of(SUITE)
    meta = describe(plan(suite), MACHINE, {}, suite_text=SUITE, suite_path="test.yaml", overrides=())
    (tmp_path / "run.json").write_text(json.dumps(meta))
    run = open_run(tmp_path)
    size = {"conv": 2.0, "dbb": 5.5, "orepa": 2.7}
    lines = []
    for number, (id_, one) in enumerate(run.planned_cells.items()):
        reading = Reading("train_memory", "train", "B", (size[one.block.name] * GB,))
        record = Record(f"t{number}", TaskKind.CELL, id_, "train_memory", 0, "f", Status.OK, (reading,))
        lines.append(json.dumps(record.to_json()) + "\n")
    (tmp_path / "journal.jsonl").write_text("".join(lines))
    printed = tables_of(run)
    assert column(printed, "this run", "saved") == {"conv": "reference", "dbb": "yardstick", "orepa": "80.0"}
    assert tables_of(run)[0].notes[0] == "the rest"
