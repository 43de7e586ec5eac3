"""Published figures, the cells they speak of, and the two numbers side by side."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd
import pytest
import yaml
from synthetic_run import MACHINE, FakeRun, cell, cells_frame

from harness.errors import SuiteError, UnknownName
from harness.planning import plan
from harness.published import check, figure, figures
from harness.records import Reading, Record, Status, TaskKind, Variant
from harness.report import report
from harness.report.published import Beside, beside
from harness.report.tables import views
from harness.store.directory import describe
from harness.store.run import open_run
from harness.suite.schema import schema

GB = 1e9
R18, R34 = Variant("resnet18"), Variant("resnet34")
# OREPA, table 4, memory in GB: ResNet-18 plain 4.2, DBB 7.5, OREPA 5.2; ResNet-34 plain 5.2, DBB 11.1, OREPA 6.7
TABLE_4 = {
    f"OREPA-T4-{number:03}": f'block == "{block}" and backbone == "{backbone}"'
    for number, block, backbone in [
        (2, "conv", "resnet18"), (5, "dbb", "resnet18"), (8, "orepa", "resnet18"),
        (11, "conv", "resnet34"), (14, "dbb", "resnet34"), (17, "orepa", "resnet34"),
    ]
}  # fmt: skip


def entry(**changes: Any) -> dict[str, Any]:
    plain = {"title": "Table 4", "metric": "train_memory", "unit": "GB", "saved_from": "dbb", "figures": TABLE_4}
    return {key: value for key, value in {**plain, **changes}.items() if value is not None}


# the figures


def test_every_row_is_a_figure_with_a_name_of_its_own():
    assert len(figures()) == len({one.id for one in figures()}) > 400
    assert all(one.paper and one.table and one.block and one.unit and one.source for one in figures())


def test_a_figure_is_found_by_its_id_and_a_wrong_one_told_the_nearest():
    dbb = figure("OREPA-T4-005")
    assert (dbb.block, dbb.backbone, dbb.value, dbb.unit) == ("DBB", "ResNet-18", 7.5, "GB (per GPU; see md)")
    assert dbb.hardware == "4x NVIDIA Tesla V100 (32 GB)"
    with pytest.raises(UnknownName, match="OREPA-T4-005"):
        figure("OREPA-T4-0005")


# what a suite may say of them

SUITE = """\
axes:
  block: [conv, dbb, {orepa: {reparam: offline}}, orepa]
  backbone: [resnet18, resnet34]
exclude: block == "dbb" and backbone == "resnet34"
metrics: [params, train_memory]
published:
  - title: Table 4
    metric: train_memory
    unit: GB
    saved_from: dbb
    figures:
      OREPA-T4-002: block == "conv" and backbone == "resnet18"
      OREPA-T4-005: block == "dbb" and backbone == "resnet18"
      OREPA-T4-008: block == "orepa" and block.reparam == None and backbone == "resnet18"
    note: the rest
"""


def test_an_entry_is_read_as_it_is_written(suite_of):
    (one,) = suite_of(SUITE).published
    assert (one.title, one.form, one.factor, one.yardstick, one.note) == ("Table 4", "train", GB, "dbb", "the rest")
    assert list(one.figures) == ["OREPA-T4-002", "OREPA-T4-005", "OREPA-T4-008"]
    (other,) = suite_of(SUITE.replace("saved_from: dbb", "saved_from: {orepa: {reparam: offline}}")).published
    assert other.yardstick == "orepa(reparam=offline)"


@pytest.mark.parametrize(("unit", "factor"), [("GiB", 2**30), ("MB", 1e6), ("B", 1)])
def test_gigabytes_are_decimal_and_gibibytes_are_not(suite_of, unit, factor):
    assert suite_of(SUITE.replace("unit: GB", f"unit: {unit}")).published[0].factor == factor


def test_a_bare_one_is_the_unit_of_counts(suite_of):
    text = SUITE.replace("metric: train_memory", "metric: params").replace("unit: GB", "unit: 1")
    assert suite_of(text).published[0].unit == "1"


@pytest.mark.parametrize(
    ("old", "new", "place", "says", "remedy"),
    [
        ("metric: train_memory", "metric: train_memry", "8:13", "'train_memry'", "train_memory"),
        ("metric: train_memory", "metric: latency", "8:13", "'latency'", "params"),
        ("unit: GB", "unit: Gb", "9:11", "no unit is called 'Gb'", "GB"),
        ("unit: GB", "unit: ms", "9:11", "train_memory is not measured in ms", "GiB"),
        ("unit: GB", "unit: M", "9:11", "train_memory is not measured in M", "GiB"),
        ("unit: GB", "unit: 1.5", "9:11", "string", "1e9 bytes"),
        ("unit: GB", "form: fused\n    unit: GB", "9:11", "no form 'fused'", "train"),
        ("unit: GB", "units: GB", "9:5", "'units'", "unit"),
        ("    unit: GB\n", "", "7:5", "published[0].unit is missing", "add unit"),
        ('block == "conv"', "block = 1", "12:21", "not an expression", "=="),
        ('block == "conv"', "blok == 1", "12:21", "'blok'", "block"),
    ],
)
def test_a_mistake_is_refused_when_the_suite_is_read(suite_of, old, new, place, says, remedy):
    with pytest.raises(SuiteError) as caught:
        suite_of(SUITE.replace(old, new))
    assert str(caught.value).startswith(f"test.yaml:{place}: "), caught.value
    assert says in caught.value.problem
    assert remedy in caught.value.remedy, caught.value


def test_an_entry_without_figures_is_refused(suite_of):
    text = SUITE[: SUITE.index("figures:")] + "figures: {}\n"
    with pytest.raises(SuiteError, match=r"test\.yaml:11:14: .*at least 1") as caught:
        suite_of(text)
    assert caught.value.remedy == "give at least one value"


def test_the_schema_names_the_quantities_and_the_units():
    properties = schema()["$defs"]["Published"]["properties"]
    assert "train_memory" in properties["metric"]["enum"]
    assert {"GB", "GiB", "ms", "%", "1", 1} <= set(properties["unit"]["enum"])
    assert "published" in schema()["properties"]


# against the figures and the plan


def test_what_is_meant_passes(suite_of):
    suite = suite_of(SUITE)
    check(suite, plan(suite))
    plain = suite_of()
    check(plain, plan(plain))


@pytest.mark.parametrize(
    ("old", "new", "place", "says", "remedy"),
    [
        ("OREPA-T4-002", "OREPA-T4-0002", "12:7", "'OREPA-T4-0002'", "OREPA-T4-002"),
        ("OREPA-T4-002", "OREPA-T4-003", "12:7", "OREPA-T4-003 is in 's/batch', not in GB", "take a figure in GB"),
        ("unit: GB", "unit: MB", "12:7", "not in MB", "unit: GB"),
        ("OREPA-T4-002", "RVGG-4-002", "12:7", "images/s", "take a figure in GB"),
        ('block == "conv" and', 'block == "acb" and', "12:21", "holds for no cell", "harness plan"),
        ('block == "conv" and', 'block == "conv" or', "12:21", "holds for 5 cells", "say more of block or backbone"),
        ('block == "dbb" and backbone == "resnet18"\n      OREPA-T4-008', 'block == "dbb" and backbone == "resnet34"\n'
         "      OREPA-T4-008", "13:21", "holds for no cell", "leaves its cell out: excluded"),
        ("block.reparam == None and ", "", "14:21", "holds for 2 cells", "say more of block"),
        ('block == "conv"', 'block == "dbb"', "13:21", "OREPA-T4-002 and OREPA-T4-005 speak of one cell", "mend"),
        ('block == "conv"', "block < 5", "12:21", "cannot be answered", "numbers with numbers"),
        ("saved_from: dbb", "saved_from: acb", "10:17", "'acb'", "dbb"),
        ("saved_from: dbb", "saved_from: conv", "10:17", "conv is the reference", "name another"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_before_anything_is_measured(suite_of, old, new, place, says, remedy):
    suite = suite_of(SUITE.replace(old, new))
    with pytest.raises(SuiteError) as caught:
        check(suite, plan(suite))
    assert str(caught.value).startswith(f"test.yaml:{place}: "), caught.value
    assert says in caught.value.problem
    assert remedy in caught.value.remedy, caught.value


def test_overridden_axes_may_lack_cells(suite_of):
    suite = suite_of(re.sub("exclude.*\n", "", SUITE), overrides=("block=conv,acb",))
    check(suite, plan(suite), complete=False)
    with pytest.raises(SuiteError, match="holds for no cell"):
        check(suite, plan(suite))


def test_two_batch_sizes_are_ambiguous_and_the_axis_is_named(suite_of):
    suite = suite_of(SUITE, overrides=("batch_size=8,16",))
    with pytest.raises(SuiteError, match="say more of batch_size"):
        check(suite, plan(suite), complete=False)


PARTS = """
parts:
  counts:
    axes: {block: [conv, dbb], backbone: resnet18}
    metrics: params
  memory:
    axes: {block: [conv, dbb], backbone: resnet18}
    metrics: train_memory
published:
  - title: Table 4
    metric: train_memory
    unit: GB
    figures: {OREPA-T4-002: block == "conv" and part == "memory"}
"""


def test_the_part_is_an_axis_and_must_read_the_quantity(suite_of):
    suite = suite_of(PARTS)
    check(suite, plan(suite))
    with pytest.raises(SuiteError, match="say more of part"):
        check(loose := suite_of(PARTS.replace(' and part == "memory"', "")), plan(loose))
    with pytest.raises(SuiteError, match="the part counts does not read train_memory"):
        check(wrong := suite_of(PARTS.replace('part == "memory"', 'part == "counts"')), plan(wrong))


# side by side


@dataclass
class PlannedRun(FakeRun):
    """A synthetic run that knows its cells, with one published entry or more."""

    planned: tuple[Any, ...] = ()

    @cached_property
    def planned_cells(self) -> dict[str, Any]:
        return {one.id: one for one in self.planned}


def run_of(cells: list[Any], *entries: dict[str, Any], reference: str | None = "conv") -> PlannedRun:
    text = yaml.safe_dump({"published": list(entries)}, sort_keys=False)
    return PlannedRun(cells_frame(cells, reference=reference), suite_text=text, planned=tuple(cells))


BLOCKS = ("conv", "dbb", "orepa")
EIGHTEEN = [cell(block) for block in BLOCKS]
THIRTY_FOUR = [cell(block, backbone=R34) for block in BLOCKS]


def measured(*entries: dict[str, Any], cells: list[Any] = EIGHTEEN) -> PlannedRun:
    """2, 5.5 and 2.7 GB on ResNet-18: DBB adds 3.5, OREPA 0.7; on ResNet-34 twice as much."""
    run = run_of(cells, *(entries or (entry(),)))
    size = {"conv": 2.0, "dbb": 5.5, "orepa": 2.7}
    for one in cells:
        run.put(one.id, "train_memory", size[one.block.name] * GB * (2 if one.backbone == R34 else 1), "train")
    return run


def tables_of(run: FakeRun) -> list[Beside]:
    found, problems = beside(run, views(run))
    assert problems == []
    return found


def column(run: FakeRun, *heading: str) -> dict[str, str]:
    (one,) = tables_of(run)
    found = [column for column in one.table.columns if column.heading[: len(heading)] == heading]
    return dict(zip(one.table.labels, found[0].cells, strict=True))


def test_the_numbers_are_those_done_by_hand():
    run = measured()
    assert column(run, "published", "[GB]") == {"conv": "4.2", "dbb": "7.5", "orepa": "5.2"}
    assert column(run, "this run", "[GB]") == {"conv": "2.000", "dbb": "5.500", "orepa": "2.700"}
    assert column(run, "published", "added", "[GB]") == {"conv": "reference", "dbb": "+3.3", "orepa": "+1.0"}
    assert column(run, "this run", "added", "[GB]") == {"conv": "reference", "dbb": "+3.500", "orepa": "+0.7000"}
    assert column(run, "added, ours") == {"conv": "", "dbb": "1.06", "orepa": "0.70"}  # 3.5 / 3.3, 0.7 / 1.0
    # 1 - 1.0 / 3.3, 1 - 0.7 / 3.5
    assert column(run, "published", "saved") == {"conv": "reference", "dbb": "yardstick", "orepa": "69.7"}
    assert column(run, "this run", "saved") == {"conv": "reference", "dbb": "yardstick", "orepa": "80.0"}


def test_units_are_what_they_say():
    run = measured(entry(unit="GiB"))
    assert column(run, "this run", "[GiB]")["conv"] == "1.863"  # 2e9 / 2**30
    assert column(run, "added, ours")["dbb"] == "0.99"  # 3.5e9 / 2**30 / 3.3
    assert column(run, "this run", "saved")["orepa"] == "80.0"


def test_groups_stand_together_and_are_told_apart():
    ids = list(TABLE_4)
    mixed = {id_: TABLE_4[id_] for id_ in [ids[3], ids[0], ids[4], ids[1], ids[5]]}
    run = measured(entry(figures=mixed), cells=[*EIGHTEEN, *THIRTY_FOUR])
    assert list(column(run, "published", "[GB]").items()) == [
        ("resnet34, conv", "5.2"), ("resnet34, dbb", "11.1"), ("resnet34, orepa", "6.7"),
        ("resnet18, conv", "4.2"), ("resnet18, dbb", "7.5"),
    ]  # fmt: skip
    assert column(run, "added, ours")["resnet34, dbb"] == "1.19"  # 7.0 / 5.9
    assert column(run, "published", "saved")["resnet34, orepa"] == "74.6"  # 1 - 1.5 / 5.9
    assert tables_of(run)[0].table.corner == "backbone, block"


def test_without_a_yardstick_nothing_is_saved():
    (one,) = tables_of(measured(entry(saved_from=None)))
    assert [c.heading[-1] for c in one.table.columns] == ["[GB]", "[GB]", "[GB]", "[GB]", "/ published"]
    assert "saved" not in one.table.caption


def test_a_reference_without_a_figure_leaves_only_what_this_run_adds():
    figures = {id_: text for id_, text in TABLE_4.items() if id_ != "OREPA-T4-002"}
    run = measured(entry(figures=figures))
    assert column(run, "published", "added") == {"dbb": "–", "orepa": "–"}
    assert column(run, "this run", "added") == {"dbb": "+3.500", "orepa": "+0.7000"}
    assert column(run, "added, ours") == {"dbb": "–", "orepa": "–"}
    assert column(run, "published", "saved")["orepa"] == "–"
    assert column(run, "this run", "saved")["orepa"] == "80.0"


def test_a_group_without_a_reference_has_values_and_no_differences():
    run = run_of(EIGHTEEN, entry(), reference=None)
    for one in EIGHTEEN:
        run.put(one.id, "train_memory", GB, "train")
    assert column(run, "this run", "[GB]")["dbb"] == "1.000"
    for heading in ("published", "added"), ("this run", "added"), ("added, ours",), ("this run", "saved"):
        assert column(run, *heading)["orepa"] == "–"


def test_a_failed_cell_shows_its_status_and_takes_its_numbers_along():
    run = run_of(EIGHTEEN, entry())
    conv, dbb, orepa = (one.id for one in EIGHTEEN)
    run.put(conv, "train_memory", 2 * GB, "train").put(orepa, "train_memory", 3 * GB, "train").fail(dbb, "oom")
    assert column(run, "this run", "[GB]") == {"conv": "2.000", "dbb": "oom", "orepa": "3.000"}
    assert column(run, "this run", "added") == {"conv": "reference", "dbb": "–", "orepa": "+1.000"}
    assert column(run, "added, ours") == {"conv": "", "dbb": "–", "orepa": "1.00"}
    assert column(run, "this run", "saved")["orepa"] == "–"
    assert column(run, "published", "saved")["orepa"] == "69.7"


def test_a_failed_reference_leaves_values_alone():
    run = run_of(EIGHTEEN, entry())
    conv, dbb, orepa = (one.id for one in EIGHTEEN)
    run.fail(conv, "timeout").put(dbb, "train_memory", 3 * GB, "train").put(orepa, "train_memory", 2 * GB, "train")
    assert column(run, "this run", "[GB]") == {"conv": "timeout", "dbb": "3.000", "orepa": "2.000"}
    assert column(run, "this run", "added")["orepa"] == "–"


def test_a_run_in_which_nothing_was_measured_has_no_numbers():
    run = run_of(EIGHTEEN, entry()).fail(EIGHTEEN[0].id, "killed")
    assert column(run, "this run", "[GB]") == {"conv": "killed", "dbb": "–", "orepa": "–"}


def test_cells_that_the_run_does_not_have_are_left_out():
    assert list(column(measured(cells=EIGHTEEN[:2]), "published", "[GB]")) == ["conv", "dbb"]
    assert tables_of(measured(entry(figures={"OREPA-T4-011": TABLE_4["OREPA-T4-011"]}))) == []


def test_a_yardstick_that_adds_nothing_saves_nothing():
    run = run_of(EIGHTEEN, entry())
    for one in EIGHTEEN:
        run.put(one.id, "train_memory", GB, "train")
    assert column(run, "this run", "saved")["orepa"] == "–"
    assert column(run, "added, ours")["dbb"] == "0.00"


def test_times_have_their_interval_and_fractions_their_points():
    times = {"OREPA-T4-003": 'block == "conv"', "OREPA-T4-009": 'block == "orepa"'}
    run = run_of(EIGHTEEN, entry(metric="train_step", unit="s", saved_from=None, figures=times))
    run.put(EIGHTEEN[0].id, "train_step", [0.1] * 5, "train")
    run.put(EIGHTEEN[2].id, "train_step", [0.14, 0.15, 0.16, 0.15], "train")
    assert column(run, "published", "[s]") == {"conv": "0.086", "orepa": "0.120"}
    assert re.fullmatch(r"0\.149\d \[0\.1\d+, 0\.1\d+\]", column(run, "this run", "[s]")["orepa"])
    assert column(run, "published", "added")["orepa"] == "+0.034"
    learned = {"OREPA-T4-001": 'block == "conv"', "OREPA-T4-007": 'block == "orepa"'}
    run = run_of(EIGHTEEN, entry(metric="accuracy", unit="%", saved_from=None, figures=learned))
    run.put(EIGHTEEN[0].id, "accuracy", 0.7, "train").put(EIGHTEEN[2].id, "accuracy", 0.705, "train")
    assert column(run, "this run", "[%]") == {"conv": "70.00", "orepa": "70.50"}
    assert column(run, "this run", "added") == {"conv": "reference", "orepa": "+0.5000"}
    assert column(run, "added, ours")["orepa"] == "0.54"  # 0.5 / 0.92


def test_options_of_a_variant_can_be_asked_for():
    online = replace(EIGHTEEN[2], block=Variant("orepa", {"reparam": "offline"}))
    run = run_of([EIGHTEEN[0], online], entry(figures={"OREPA-T4-008": 'block.reparam == "offline"'}, saved_from=None))
    assert list(column(run, "published", "[GB]")) == ["orepa(reparam=offline)"]


def test_what_cannot_be_printed_is_said(tmp_path):
    both = {
        "OREPA-T4-002": 'backbone == "resnet18"',
        "OREPA-T9-999": 'block == "dbb"',
        "OREPA-T4-008": TABLE_4["OREPA-T4-008"],
    }
    run = measured(entry(figures=both))
    (one,), problems = beside(run, views(run))
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
    assert beside(run, views(run)) == ([], [])


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
    assert column(run, "this run", "saved") == {"conv": "reference", "dbb": "yardstick", "orepa": "80.0"}
    assert tables_of(run)[0].notes[0] == "the rest"


# what is said of them


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
    (said,) = tables_of(run)
    assert said.notes[:3] == ("no workspace", "float32", "the CUDA context")
    assert said.notes[3].startswith("Source of OREPA-T4-002, OREPA-T4-005, OREPA-T4-008: JUGGHM/OREPA_CVPR2022")
    assert "over a training step; live storages; resnet18" in said.table.caption


@pytest.mark.parametrize("format", ["text", "md", "tex", "html"])
def test_every_format_prints_it_before_the_groups(format):
    page = report(measured(entry(title="A & <B>", note="50% of <it>")), format)
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
    for format in ("text", "md", "tex", "html"):
        assert "ublished" not in report(run, format)
