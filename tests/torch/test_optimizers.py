"""Optimizers declare their options once: planning reads what the constructor takes, and what is missing is said."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import pytest
import torch
from torch import nn

from harness import catalog
from harness.errors import UnknownName, Unsupported
from harness.training import optimizers
from harness.training.optimizers import OPTIMIZERS, OptimizerFactory
from harness.training.optimizers.base import options_of

DEFAULTS = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "custom_l2": False},
    "adamw": {"lr": 1e-3, "weight_decay": 0.01},
    "repopt": {"base": "sgd", "lr": None, "momentum": 0.9, "nesterov": False, "weight_decay": None},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_planning_knows_is_what_the_constructor_takes(name):
    options = catalog.optimizers()[name]["options"]
    assert {key: option["default"] for key, option in options.items()} == {**DEFAULTS[name], "implementation": None}
    assert all(option["what"] for option in options.values())
    assert {field.name for field in fields(OPTIMIZERS[name])} == set(options)


@pytest.mark.parametrize(("written", "expected"), [({}, "foreach"), ({"implementation": "fused"}, "fused")])
def test_the_implementation_is_the_devices_unless_it_is_written(written, expected):
    assert optimizers.choose("sgd", written, "foreach").implementation == expected


@dataclass(frozen=True, kw_only=True)
class Alone(OptimizerFactory):
    """Has one implementation, and an option whose default follows from something else."""

    implementation: Annotated[Literal["single"] | None, "the only one"] = None
    rho: Annotated[float | None, "what it is"] = None
    steps: Annotated[int, "what it is"] = 3
    kind: Annotated[Literal["a", "b"], "what it is"] = "a"

    def create(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1, foreach=self.foreach, fused=self.fused)


def test_an_optimizer_that_lacks_the_devices_implementation_takes_its_own_first(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS._items, "alone", Alone)
    chosen = optimizers.choose("alone", {"rho": 0.5}, "foreach")
    assert (chosen.implementation, chosen.rho, chosen.foreach) == ("single", 0.5, False)
    assert optimizers.declaration("alone") == {
        "what": "Has one implementation, and an option whose default follows from something else.",
        "options": {
            "implementation": {"choices": ["single"], "default": None, "what": "the only one"},
            "rho": {"type": "number", "default": None, "what": "what it is"},
            "steps": {"type": "integer", "default": 3, "what": "what it is"},
            "kind": {"choices": ["a", "b"], "default": "a", "what": "what it is"},
        },
    }


def test_a_declaration_that_lacks_something_says_what(monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Silent(Alone):
        beta: float = 0.5

    with pytest.raises(TypeError, match=r"Silent.beta needs .* Annotated\[float"):
        options_of(Silent)
    monkeypatch.setitem(OPTIMIZERS._items, "silent", Silent)
    with pytest.raises(TypeError, match="silent does not say what it is"):
        optimizers.declaration("silent")


def test_what_does_not_go_together_is_refused_before_anything_is_made():
    with pytest.raises(Unsupported, match="AdamW has no nesterov"):
        optimizers.choose("repopt", {"base": "adamw", "nesterov": True}, "single")
    optimizers.choose("repopt", {"base": "adamw", "nesterov": False}, "single")
    with pytest.raises(UnknownName, match="sgd"):
        optimizers.choose("sdg", {}, "single")


def test_the_loss_is_left_alone_by_an_optimizer_that_adds_nothing():
    loss = torch.tensor(2.0)
    assert OPTIMIZERS["adamw"]().regularized(loss, nn.Linear(1, 1)) is loss
