"""A quantity's place and words in the report are declared by its metric, in one place and as plain data."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from synthetic_run import CONV, KINDS, OREPA, FakeRun, cell, cells_frame

import harness
from harness import catalog
from harness.quantity import LAST, Parts, Phrase, Quantity, Rate, Theme, Wording
from harness.records import Kind
from harness.report.breakdown import breakdowns
from harness.report.sentences import sentences
from harness.report.tables import tables, views

DECLARED = Quantity(
    "depth",
    "1",
    Kind.COUNT,
    forms=("train", "fused"),
    what="layers in a row",
    limits={"float32": 1e-6},
    rank=65,
    theme=Theme.RUN,
    phrases=(Phrase(Wording.COUNT, "layers", unless=("params",)), Phrase(Wording.TIME, "n", "v", form="fused")),
    parts=(Parts("stages", "Layers by stage"),),
    axis="depth",
    rate=Rate("latency", per_image=("macs",)),
)


def blocks(*names: str) -> FakeRun:
    return FakeRun(cells_frame([cell(name) for name in names]))


@pytest.fixture
def declare(monkeypatch):
    """Put quantities into the catalog, as an index that was made with their metrics has them."""

    def add(*quantities: Quantity) -> None:
        known = {**catalog.described(), **{one.name: one for one in quantities}}
        monkeypatch.setattr(catalog, "described", lambda: known)
        for one in quantities:
            monkeypatch.setitem(KINDS, one.name, (one.unit, str(one.kind), one.better))

    return add


def test_a_declaration_is_read_back_as_it_was_written():
    assert Quantity.from_json(json.loads(json.dumps(DECLARED.to_json()))) == DECLARED


def test_what_was_not_declared_is_not_written():
    plain = Quantity("x", "s", Kind.SAMPLED)
    assert list(plain.to_json()) == ["name", "unit", "kind", "better", "forms", "what"]
    assert Quantity.from_json(plain.to_json()) == plain


def test_a_phrase_without_a_form_is_of_the_first_form_and_of_none():
    accuracy, latency = catalog.quantity_of("accuracy"), catalog.quantity_of("latency")
    assert [bool(accuracy.phrase_of(form)) for form in ("train", "", "fused")] == [True, True, False]
    verbs = [phrase.verb for form in ("train", "", "fused") if (phrase := latency.phrase_of(form))]
    assert verbs == ["runs as trained", "runs", "runs fused"]


def test_a_quantity_that_no_metric_reads_any_more_is_printed_last_and_without_words():
    old = catalog.quantity_of("gone_since")
    assert (old.kind, old.rank, old.phrases) == (Kind.SAMPLED, LAST, ())
    run = blocks("conv", "orepa").put(CONV, "gone_since", 2.0, "train").put(OREPA, "gone_since", 3.0, "train")
    run.put(CONV, "params", 2.0, "train").put(OREPA, "params", 3.0, "train")
    (view,) = views(run)
    assert [metric for metric, _ in view.quantities()] == ["params", "gone_since"]


def test_a_new_quantity_takes_its_place_and_is_told_in_its_words(declare):
    declare(Quantity("depth", "1", Kind.COUNT, rank=105, phrases=(Phrase(Wording.COUNT, "layers in a row", rank=15),)))
    run = blocks("conv", "orepa")
    for metric in ("params", "macs", "depth"):
        run.put(CONV, metric, 2.0, "train").put(OREPA, metric, 3.0, "train")
    (view,) = views(run)
    assert [metric for metric, _ in view.quantities()] == ["macs", "depth", "params"]
    assert sentences(view) == [
        "orepa has 1.50x the parameters and 1.50x the layers in a row and 1.50x the MACs of conv."
    ]


def test_a_theme_decides_the_table_and_the_kind_comes_first(declare):
    declare(Quantity("depth", "1", Kind.COUNT, theme=Theme.EXACT))
    (view,) = views(blocks("conv", "orepa").put(CONV, "depth", 2.0, "train").put(OREPA, "depth", 3.0, "train"))
    assert [table.title for table in tables(view)] == ["How exact and how accurate"]
    assert DECLARED.theme_of("train", Kind.BOUNDED) is Theme.EXACT


def test_what_is_left_out_for_another_is_told_where_the_other_is_not_there():
    run = blocks("conv", "orepa")
    run.put(CONV, "saved_memory", 0.0, "train").put(OREPA, "saved_memory", 1024.0, "train")
    (view,) = views(run)
    facts = {(OREPA, "predicted_train_memory"): {"phases": {"forward": 3}}}
    assert sentences(view) == ["orepa adds 1.000 KiB to what is kept for backward."]
    assert [table.title for table in breakdowns(view, facts)] == ["The peak of training by phase (predicted)"]
    facts |= {(CONV, "train_memory"): {"phases": {"forward": 2}}}
    assert [table.title for table in breakdowns(view, facts)] == ["The peak of training by phase"]


def test_no_quantity_is_named_where_all_are_stored_judged_or_printed():
    names = set(catalog.described())
    root = Path(harness.__file__).parent
    for folder in ("store", "verdict", "published", "doctor", "report", "cli"):
        for path in (root / folder).rglob("*.py"):
            found = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not found & names, path
