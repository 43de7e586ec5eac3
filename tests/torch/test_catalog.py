"""The catalog that planning reads is what the code declares."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import pytest
from metric_cells import CELL

from harness import blocks, catalog, indexing
from harness.catalog import vocabulary
from harness.errors import HarnessError
from harness.measuring.subject import DTYPES, FORMATS
from harness.models.nets import backbones
from harness.planning.matrix import impossible
from harness.quantity import Quantity
from harness.records import Variant

REMEDY = "run python -m harness.indexing"


def test_the_index_is_current():
    packaged = {
        "blocks": catalog.blocks(),
        "metrics": catalog.metrics(),
        "datasets": catalog.datasets(),
        "devices": catalog.devices(),
        "optimizers": catalog.optimizers(),
        "layers": catalog.layers(),
    }
    assert packaged == json.loads(json.dumps(indexing.index())), REMEDY


@pytest.mark.parametrize(
    "name",
    [
        "plain_a0",
        "resnet18",
        "mobilenetv2_050",
        "convnext_tiny",
        "repvgg_a0",
    ],
)
def test_a_backbone_is_described_as_it_is(name, described, monkeypatch):
    monkeypatch.setattr(indexing, "describe", described)
    assert catalog.backbones()[name] == indexing.backbone_entry(name), f"{REMEDY} --backbones"


def test_every_listed_backbone_exists():
    assert set(catalog.backbones()) <= set(backbones.names()), f"{REMEDY} --backbones"
    assert len(catalog.backbones()) > 500


def test_transformers_without_convolutions_are_not_listed():
    assert "vit_base_patch16_224" not in catalog.backbones()


def test_the_vocabulary_has_a_meaning_for_every_word():
    assert set(DTYPES) == set(vocabulary.DTYPES)
    assert set(FORMATS) == set(vocabulary.MEMORY_FORMATS)


def test_quantities_are_read_back_as_declared():
    assert all(isinstance(quantity, Quantity) for quantity in catalog.quantities().values())
    assert catalog.quantities()["accuracy"].better == "higher"


LAYERS = [
    {"c_in": c_in, "c_out": c_out, "groups": groups, "stride": stride, "dilation": dilation}
    for (c_in, c_out, groups), stride, dilation in product([(4, 4, 1), (4, 8, 1), (4, 4, 2), (4, 4, 4)], [1, 2], [1, 2])
]


@pytest.mark.parametrize("name", [name for name in catalog.blocks() if name != "native"])
def test_what_planning_refuses_the_constructor_refuses_too(name):
    for k, layer in product([*range(1, 16), 31], LAYERS):
        cell = replace(CELL, block=Variant(name), backbone=Variant("layer", layer), kernel_size=k)
        try:
            blocks.create(name, kernel_size=k, **layer)
        except HarnessError:
            assert impossible(cell), cell
        else:
            assert impossible(cell) is None, cell
