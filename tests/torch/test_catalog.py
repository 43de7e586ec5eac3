"""The catalog that planning reads is what the code declares."""

from __future__ import annotations

import json

import pytest

from harness import blocks, catalog, indexing
from harness.catalog import vocabulary
from harness.errors import HarnessError
from harness.metrics.subject import DTYPES, FORMATS
from harness.models import backbones
from harness.records import Quantity

REMEDY = "run python -m harness.indexing"


def test_the_index_is_current():
    packaged = {"blocks": catalog.blocks(), "metrics": catalog.metrics(), "datasets": catalog.datasets()}
    assert packaged == json.loads(json.dumps(indexing.index())), REMEDY


@pytest.mark.parametrize(
    "name",
    [
        "plain_a0",
        "plain_b0",
        "resnet18",
        "resnet50",
        "mobilenetv2_100",
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


def test_what_planning_refuses_the_constructor_refuses_too():
    for name, declared in catalog.blocks().items():
        if name == "native":
            continue
        for k in range(1, 16):
            allowed = k in declared["limits"]["kernel_size"]
            try:
                blocks.create(name, 4, 4, kernel_size=k)
            except HarnessError:
                assert not allowed, (name, k)
            else:
                assert allowed, (name, k)
