"""`fused_output` sees what both forms of a block share, and nothing that machines differ in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from metric_cells import CELL
from torch import nn

from harness.measuring.subject import Subject
from harness.metrics import METRICS
from harness.metrics import fused_output as fused
from harness.metrics.fused_output import signature
from harness.metrics.fusion_error import LIMITS
from harness.records import Cell, Variant
from harness.verdict import Verdict
from harness.verdict.rules import CLOSE_TOLERANCE, judge_close

LAYER = replace(CELL, block=Variant("repvgg"))
RESNET = replace(LAYER, backbone=Variant("resnet18"), kernel_size=None, image_size=64)
CELLS = {
    block: replace(LAYER, block=Variant(block)) for block in ("conv", "repvgg", "acb", "dbb", "orepa", "orepa_vgg")
}
CELLS["resnet18 repvgg"] = RESNET  # the deepest: last bits grow on their way through a network
CELLS["resnet10t conv"] = replace(RESNET, backbone=Variant("resnet10t"), block=Variant("conv"))
CELLS["test_resnet orepa"] = replace(RESNET, backbone=Variant("test_resnet"), block=Variant("orepa"))
every_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)

Change = Callable[[nn.Module], object]


def reading(cell: Cell, seed: int = 0):
    (found,) = METRICS["fused_output"].readings(Subject(cell, seed), {})
    return found


def values(cell: Cell, seed: int = 0) -> tuple[float, ...]:
    return reading(cell, seed).values


KNOWN: dict[str, tuple[float, ...]] = {}


def unaltered(cell: Cell) -> tuple[float, ...]:
    """The values of a cell that nothing has been done to, computed by the first test that asks."""
    if cell.id not in KNOWN:
        KNOWN[cell.id] = values(cell)
    return KNOWN[cell.id]


def verdict(before: tuple[float, ...], now: tuple[float, ...]) -> Verdict:
    return judge_close(before, now, CLOSE_TOLERANCE)[0]


@pytest.fixture
def altered(monkeypatch):
    """From now on every model is built and then changed: another version of a block, both of its forms alike."""
    original = Subject.bare_model

    def alter(change: Change) -> None:
        def bare_model(self, *args):
            model = original(self, *args)
            with torch.no_grad():
                change(model)
            return model

        monkeypatch.setattr(Subject, "bare_model", bare_model)

    return alter


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


# the same


@every_cell
def test_the_same_each_time_whatever_the_heap_looks_like(cell):
    found, clutter = [], []
    for run in range(3):
        clutter.append([torch.empty(61 * run + i) for i in range(1, 60)])
        torch.manual_seed(run)
        torch.randn(run + 1)
        found.append(values(cell))
    for again in found[1:]:
        assert again == pytest.approx(found[0], rel=0, abs=1e-10)


@every_cell
@pytest.mark.parametrize("seed", [0, 1])
def test_the_last_bits_of_the_weights_do_not_matter(cell, seed, altered):
    before = unaltered(cell)
    generator = torch.Generator().manual_seed(seed)

    def shake(model):
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    altered(shake)
    now = values(cell)
    assert now != before
    assert judge_close(before, now, CLOSE_TOLERANCE / 10)[0] is Verdict.SAME


OTHER_KERNELS = """
import json, sys
from harness.metrics import METRICS
from harness.measuring.subject import Subject
from harness.records import Cell
cells = [Cell.from_json(cell) for cell in json.load(sys.stdin)]
print(json.dumps([METRICS["fused_output"].readings(Subject(cell), {})[0].values for cell in cells]))
"""


@pytest.mark.slow
def test_torchs_kernels_for_the_plainest_cpu_give_the_same():
    """As near as one machine comes to two: normal_ draws other last bits there than with AVX2."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    cells = json.dumps([cell.to_json() for cell in CELLS.values()])
    command = [sys.executable, "-c", OTHER_KERNELS]
    done = subprocess.run(command, env=environment, input=cells, capture_output=True, text=True, check=True)
    for cell, there in zip(CELLS.values(), json.loads(done.stdout), strict=True):
        assert judge_close(unaltered(cell), there, CLOSE_TOLERANCE / 10)[0] is Verdict.SAME


def test_the_cells_device_dtype_and_memory_format_do_not_matter():
    cell = replace(LAYER, dtype="bfloat16", memory_format="channels_last", device=Variant("cuda"), batch_size=4)
    assert values(cell) == values(replace(LAYER, batch_size=4)) == values(replace(LAYER, batch_size=64))


# not the same


def test_seeds_blocks_and_inputs_differ():
    cells = [*CELLS.values(), replace(LAYER, image_size=15), replace(LAYER, kernel_size=5)]
    found = [values(LAYER, seed=1), values(LAYER, seed=2), *map(unaltered, cells)]
    assert all(verdict(a, b) is Verdict.REGRESSED for i, a in enumerate(found) for b in found[:i])


@every_cell
def test_another_eps_is_seen_and_fusion_error_is_blind_to_it(cell, altered):
    before = unaltered(cell)
    altered(lambda model: [setattr(norm, "eps", 1e-3) for norm in norms(model)])
    assert verdict(before, values(cell)) is Verdict.REGRESSED
    errors = METRICS["fusion_error"].readings(Subject(cell), {})
    assert all(error.values[0] < LIMITS["float32"] for error in errors)


def test_another_initialisation_of_one_branch_is_seen(altered):
    before = values(LAYER)
    altered(lambda model: nn.init.kaiming_uniform_(model.branches[1].conv.weight))
    assert verdict(before, values(LAYER)) is Verdict.REGRESSED


@pytest.mark.parametrize(("block", "other"), [("dbb", "origin"), ("acb", "third"), ("acb", "square")])
def test_other_first_weights_of_norms_are_seen_though_the_norms_look_lived_in(block, other):
    cell = replace(LAYER, block=Variant(block))
    assert (
        verdict(values(cell), values(replace(cell, block=Variant(block, {"gamma_init": other})))) is Verdict.REGRESSED
    )


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_another_first_value_of_one_norm_is_seen(part, altered):
    before = values(LAYER)
    altered(lambda model: getattr(norms(model)[0], part).add_(0.1))
    assert verdict(before, values(LAYER)) is Verdict.REGRESSED


def test_one_branch_less_is_seen(altered):
    before = values(LAYER)
    altered(lambda model: model.branches.pop(2))
    assert verdict(before, values(LAYER)) is Verdict.REGRESSED


@pytest.mark.parametrize("where", [(..., 0, slice(None)), (1, 7, 5, 9)], ids=["one row at the rim", "one element"])
def test_a_change_of_a_small_part_of_the_output_is_seen(where, monkeypatch):
    class Wrong(nn.Module):
        def __init__(self, right: nn.Module) -> None:
            super().__init__()
            self.right = right

        def forward(self, x):
            y = self.right(x).clone()
            y[where] += 0.5
            return y

    before, right = values(LAYER), fused.fuse
    monkeypatch.setattr(fused, "fuse", lambda model: Wrong(right(model)))
    assert verdict(before, values(LAYER)) is Verdict.REGRESSED


# the reading itself


def test_the_numbers_are_the_root_mean_square_and_projections_of_unit_size():
    found = reading(LAYER)
    assert (found.form, len(found.values)) == ("fused", 17)
    assert found.facts == {"seed": 0, "images": 2, "image_size": 14}
    y = torch.randn(3, 1000, dtype=torch.float64)
    size, *projections = signature(y)
    assert size == pytest.approx(float(y.square().mean().sqrt()))
    assert 0.5 < torch.tensor(projections).square().mean().sqrt() < 1.5
    assert signature(5 * y) == pytest.approx([5 * size, *projections])
    assert signature(torch.zeros(7, dtype=torch.float64)) == [0.0] * 17


def test_where_nothing_folds_the_numbers_are_of_the_train_form():
    dynamic = replace(LAYER, block=Variant("odconv"))
    found = reading(dynamic)
    assert (found.form, len(found.values)) == ("train", 17)
    assert values(dynamic) == found.values
    assert values(replace(dynamic, block=Variant("odconv", {"kernels": 4}))) != found.values


def test_timms_own_conversion_and_whole_networks_have_an_output_too():
    native = replace(RESNET, backbone=Variant("repvgg_a0"), block=Variant("native"))
    assert all(torch.tensor(values(native)).isfinite())
