"""Published figures, and what a suite may say of them."""

from __future__ import annotations

import re

import pytest
from published_run import SUITE

from harness.errors import SuiteError, UnknownName
from harness.planning import plan
from harness.published import check, figure, figures
from harness.suite.schema import schema

GB = 1e9

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
        ("unit: GB", "unit: GB\n    reduction: true", "10:16", "a share of the reference's", "unit: '%'"),
        ("unit: GB", "unit: '%'\n    reduction: 1", "10:16", "bool", "reference"),
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
