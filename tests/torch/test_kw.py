"""KernelWarehouse layer by layer: the equations in plain loops, the assignment of cells, initialisation, refusals."""

from __future__ import annotations

import copy
import pickle
from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from warehouse_kernels import assembled, at

from harness import blocks
from harness.blocks import ConvSpec
from harness.blocks.parts.per_sample import Mix
from harness.blocks.parts.warehouse import Ratios, Warehouse, layout_for, ratio_of
from harness.blocks.parts.warehouse_layers import AttentionSettings, KWConv2d, KWLinear, NonLocalRows
from harness.errors import HarnessError, Unsupported
from harness.training.annealing import Annealing

HALF = Fraction(1, 2)

PLACES = [
    # c_in, c_out, k, stride, groups, dilation, margin
    (6, 4, 3, 1, 1, 1, 0),
    (4, 6, 3, 2, 2, 1, 0),
    (4, 4, 3, 1, 4, 2, 0),
    (2, 2, 5, 2, 1, 1, -1),
    (6, 8, 1, 1, 1, 1, 0),
    (8, 4, 1, 2, 2, 1, 0),
    (4, 8, 3, 3, 4, 1, 1),
    (4, 6, 2, 2, 1, 1, -1),  # even, as ConvNeXt's
]


def normed(h, norm, training):
    """A norm of vectors by its definition, by the batch's statistics or the running ones."""
    if isinstance(norm, nn.LayerNorm):
        mean, variance = h.mean(1, keepdim=True), h.var(1, keepdim=True, correction=0)
    elif training:
        mean, variance = h.mean(0), h.var(0, correction=0)
    else:
        mean, variance = norm.running_mean, norm.running_var
    return (h - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def rows_of(layer, h):
    """z (rows, n + 1) of one sample, from the vector inside the attention."""
    made, n = layer.attention.rows, layer.warehouse.layout.cells
    if not isinstance(made, NonLocalRows):
        return (made.weight @ h + made.bias).reshape(-1, n + 1)
    first, own = made.part.first, made.part.cells
    basis = made.spread.in_features
    z = []
    for row in (made.expand.weight @ h).reshape(made.part.rows, -1):
        local, others, none = row[:own], made.spread.weight @ row[own : own + basis], row[own + basis :]
        z.append(torch.cat([others[:first], local, others[first:], none]))
    return torch.stack(z) + made.bias.reshape(-1, n + 1)


def by_hand(layer, x, training):
    """The layer in a loop over samples and rows, without its batch norm behind."""
    attention, layout, spec = layer.attention, layer.warehouse.layout, layer.spec
    t = attention.temperature.double()
    vectors = x.flatten(2).sum(2) / x[0, 0].numel()
    h = vectors @ attention.reduce.weight.T
    if attention.reduce.bias is not None:
        h = h + attention.reduce.bias
    h = normed(h, attention.norm, training).clamp(min=0)
    outputs = []
    for sample, vector in zip(x, h, strict=True):
        cells = []
        for z, beta in zip(rows_of(layer, vector), attention.beta, strict=True):
            a = (1 - t) * z / (z.abs().sum() + 1e-3) + t * beta
            cells.append((a[: layout.cells, None] * layer.warehouse.cells).sum(0))
        kernel = assembled(torch.stack(cells), spec, layout.c_out, layout.c_in)
        y = F.conv2d(sample[None], kernel, layer.bias, spec.stride, spec.padding, spec.dilation, spec.groups)
        outputs.append(y[0])
    return torch.stack(outputs)


def assert_alike(module, forward, reference, x):
    """Outputs, and gradients of the input and of every parameter."""
    results = []
    for compute in (forward, reference):
        leaf = x.clone().requires_grad_()
        y = compute(leaf)
        wanted = [leaf, *module.parameters()]
        results.append((y, *torch.autograd.grad(y, wanted, torch.cos(torch.arange(y.numel())).reshape(y.shape).to(y))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def pair(specs, ratios, settings=None, bias=True):
    """A warehouse and the layers that share it."""
    warehouse = Warehouse(layout_for(specs, ratios))
    settings = settings or AttentionSettings()
    return warehouse, [KWConv2d(spec, warehouse, index, settings, bias) for index, spec in enumerate(specs)]


def spec_of(place):
    return ConvSpec(*place)


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("ratio", [1, 2, "1/2"])
@pytest.mark.parametrize("place", PLACES)
def test_a_layer_is_its_equation_sample_by_sample(place, ratio, norm, lived_in):
    b = ratio_of(ratio)
    ratios = Ratios(b) if b >= 1 else Ratios(b, HALF, HALF)
    warehouse, (layer,) = pair([spec_of(place)], ratios, AttentionSettings(norm=norm))
    both = lived_in(nn.ModuleList([warehouse, layer])).double()
    for batch, training, temperature in ((1, False, 0.0), (2, True, 0.3), (5, False, 0.75)):
        at(both.train(training), temperature)
        x = torch.randn(batch, place[0], 7, 6, dtype=torch.float64)
        assert_alike(both, layer, lambda leaf, training=training: by_hand(layer, leaf, training), x)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_shared_warehouse_with_a_basis_is_its_equation(index, lived_in):
    """Own cells stand at the front, in the middle and at the end of the row."""
    specs = [ConvSpec(8, 4, 3), ConvSpec(4, 8, 1), ConvSpec(4, 4, 3)]
    warehouse, layers = pair(specs, Ratios(HALF, HALF, HALF), AttentionSettings(basis=Fraction(1, 2)))
    layer = layers[index]
    assert isinstance(layer.attention.rows, NonLocalRows)
    both = lived_in(nn.ModuleList([warehouse, layer])).double()
    at(both, 0.25)
    x = torch.randn(3, specs[index].c_in, 5, 6, dtype=torch.float64)
    assert_alike(both, layer, lambda leaf: by_hand(layer, leaf, True), x)


@pytest.mark.parametrize("options", [{}, {"ratio": "1/2"}, {"ratio": 4, "attention_norm": "layer"}])
def test_the_block_is_its_layer_and_a_batch_norm(options, lived_in):
    block = lived_in(blocks.create("kw", 4, 6, stride=2, padding=0, **options)).double()

    def reference(x):
        y = by_hand(block.conv, x, training=True)
        mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
        return (y - mean) / torch.sqrt(variance + 1e-5) * block.bn.weight[:, None, None] + block.bn.bias[:, None, None]

    assert_alike(block, block, reference, torch.randn(3, 4, 8, 5, dtype=torch.float64))


def test_linear_layers_are_pointwise_convolutions(lived_in):
    spec = ConvSpec(6, 8, 1)
    warehouse = Warehouse(layout_for([spec, spec], Ratios(HALF, HALF, HALF)))
    conv = KWConv2d(spec, warehouse, 1, AttentionSettings(norm="layer"), bias=True)
    linear = KWLinear(6, 8, warehouse, 1, AttentionSettings(norm="layer"), bias=True)
    lived_in(nn.ModuleList([warehouse, conv])).double()
    linear.double().load_state_dict(conv.state_dict())
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    expected = conv(x)
    torch.testing.assert_close(linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(linear(x.flatten(2).mT).mT, expected.flatten(2), rtol=1e-12, atol=1e-13)
    one = torch.randn(3, 6, dtype=torch.float64)  # a vector is its own mean
    torch.testing.assert_close(linear(one), conv(one[..., None, None])[..., 0, 0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("place", PLACES)
def test_at_temperature_one_and_ratio_one_a_layer_is_a_static_convolution(place, lived_in):
    spec = spec_of(place)
    other = ConvSpec(2 * spec.c_in, 2 * spec.c_out, 1, groups=spec.groups)
    warehouse, layers = pair([other, spec], Ratios(Fraction(1)), bias=False)
    at(lived_in(nn.ModuleList([warehouse, *layers])), 1.0)
    layout, layer = warehouse.layout, layers[1]
    kernel = assembled(warehouse.cells[layout.layers[1].first :], spec, layout.c_out, layout.c_in)
    x = torch.randn(2, spec.c_in, 7, 8)
    vectors = x.mean((2, 3))
    assert torch.equal(layer.kernels(vectors), kernel.expand(2, *kernel.shape))
    static = F.conv2d(x, kernel, None, spec.stride, spec.padding, spec.dilation, spec.groups)
    torch.testing.assert_close(layer(x), static, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("b", "r"), [("1/2", 2), ("1/4", 4), (1, 1), (2, 1), (4, 1)])
def test_rows_that_start_without_a_cell(b, r):
    block = at(blocks.create("kw", 8, 8, 3, ratio=b), 1.0)
    kernel = block.conv.kernels(torch.randn(2, 8))[0]
    layout = block.warehouse.layout
    cells = kernel.unfold(0, layout.c_out, layout.c_out).unfold(1, layout.c_in, layout.c_in)
    zero = (cells == 0).all(-1).all(-1)
    assert zero.float().mean() == (r - 1) / r
    beta = block.conv.attention.beta
    assert torch.equal(beta.sum(1), torch.ones(len(beta)))
    assert set(beta.unique().tolist()) == {0.0, 1.0}


def test_attention_contrasts(lived_in):
    layer = lived_in(blocks.create("kw", 16, 16, 3, ratio=2)).conv.eval()
    attention = layer.attention(torch.randn(64, 16))
    assert attention.shape == (64 * 9, 18)
    norms = attention.abs().sum(1)
    assert norms.max() < 1
    assert norms.min() > 0.2
    assert (attention > 0).any(1).float().mean() > 0.99
    assert (attention < 0).any(1).float().mean() > 0.99


def test_cells_are_handed_out_by_a_running_index():
    """b = 2, two layers of 2 and 3 rows; b = 1/2 of layers with 4 and 6 rows: written out."""
    twice = layout_for([ConvSpec(4, 8, 1), ConvSpec(4, 12, 1)], Ratios(Fraction(2)))
    assert [part.starts for part in twice.layers] == [(0, 2), (4, 6, 8)]
    assert [(part.first, part.cells) for part in twice.layers] == [(0, 4), (4, 6)]
    half = layout_for([ConvSpec(4, 8, 1), ConvSpec(4, 12, 1)], Ratios(HALF, HALF, Fraction(1)))
    # row 0 of each run of r gets one in the first run, row 1 in the second, and so on; 5 means none
    assert [part.starts for part in half.layers] == [(0, 5, 5, 1), (2, 5, 5, 3, 4, 5)]


@pytest.mark.parametrize(("rows", "r", "fits"), [((3, 5), 2, True), ((5, 9), 2, False), ((8,), 4, True), ((18,), 4, False), ((3,), 3, True), ((5, 5), 3, False)])  # fmt: skip
def test_unit_fractions_fit_where_the_index_comes_out_even(rows, r, fits):
    specs = [ConvSpec(1, count, 1) for count in (*rows, 1)][:-1]
    ratios = Ratios(Fraction(1, r), c_out=Fraction(1, 1000))  # cells of one channel
    if fits:
        layout = layout_for(specs, ratios)
        given = [cell for part in layout.layers for cell in part.starts if cell < layout.cells]
        assert given == list(range(sum(rows) // r or 1))
    else:
        with pytest.raises(Unsupported, match="places") as refusal:
            layout_for(specs, ratios)
        assert "use ratio 1" in refusal.value.remedy


@pytest.mark.parametrize("b", [1.5, 0.3, 0.75, 0, -1, "x", float("nan"), float("inf"), True, None, "2/3", "1/0"])
def test_ratios_that_cannot_be(b):
    with pytest.raises(Unsupported, match="ratio") as refusal:
        ratio_of(b)
    assert "1/4" in refusal.value.remedy


@pytest.mark.parametrize(("b", "value"), [(1, 1), (4.0, 4), ("1/4", Fraction(1, 4)), (0.5, HALF), (1 / 3, Fraction(1, 3)), ("2", 2)])  # fmt: skip
def test_ratios_that_can(b, value):
    assert ratio_of(b) == value


def test_cells_that_do_not_fill_the_channels_are_refused():
    with pytest.raises(Unsupported, match="do not fill 5 outputs"):
        blocks.create("kw", 5, 5, ratio="1/2")
    with pytest.raises(Unsupported, match="18 places"):
        blocks.create("kw", 8, 8, groups=8, ratio="1/4")
    blocks.create("kw", 5, 5)


def test_a_batch_of_one():
    x = torch.randn(1, 8, 6, 6)
    with pytest.raises(Unsupported, match="batch of 1") as refusal:
        blocks.create("kw", 8, 8)(x)
    assert "attention_norm: layer" in refusal.value.remedy
    assert blocks.create("kw", 8, 8, attention_norm="layer")(x).shape == x.shape
    assert blocks.create("kw", 8, 8).eval()(x).shape == x.shape


@pytest.mark.parametrize("seed", range(8))
def test_parameters_in_closed_form(seed):
    torch.manual_seed(seed)
    g, into, out = (int(torch.randint(1, 5, ())) for _ in range(3))
    k = (1, 3, 5)[seed % 3]
    c_in, c_out = 16 * g * into * int(torch.randint(1, 6, ())), 4 * g * out
    for ratio, norm in product([1, 2, 4, "1/2"], ["batch", "layer"]):
        b, part = (Fraction(1, 2), 2) if ratio == "1/2" else (ratio, 1)
        per_group = c_in // g
        m = part * part * k * k
        n = int(b * m)
        h = max(c_in // 16, 16)
        expected = n * (c_out // part) * (per_group // part)
        expected += c_in * h + (h if norm == "layer" else 0) + 2 * h + (h + 1) * (n + 1) * m
        with torch.device("meta"):
            block = blocks.create("kw", c_in, c_out, k, groups=g, ratio=ratio, attention_norm=norm)
        assert sum(p.numel() for p in block.parameters()) == expected + 2 * c_out


def test_parameters_of_the_parts_have_the_original_shapes():
    """fc1, norm1, fc2, fc3, basis_bias of the authors' attention, layer 1x1 64 -> 32 in a stage with a 3x3."""
    specs = [ConvSpec(64, 32, 1), ConvSpec(32, 32, 3)]
    _, (point, square) = pair(specs, Ratios(HALF, HALF, HALF), AttentionSettings(basis=Fraction(1, 4)), bias=False)
    n = (8 + 36) // 2
    shapes = {name: tuple(each.shape) for name, each in point.attention.named_parameters()}
    assert shapes == {
        "reduce.weight": (16, 64),
        "norm.weight": (16,),
        "norm.bias": (16,),
        "rows.expand.weight": ((4 + 16 + 1) * 8, 16),
        "rows.spread.weight": (n - 4, 16),
        "rows.bias": ((n + 1) * 8,),
    }
    assert square.attention.rows.spread.weight.shape == (n - 18, 16)


def test_every_layer_starts_its_own_slice_of_cells():
    specs = [ConvSpec(24, 64, 1), ConvSpec(24, 128, 3)]
    warehouse, layers = pair(specs, Ratios(Fraction(4)), AttentionSettings(norm="layer"))
    for part, cells in zip(warehouse.layout.layers, (4, 72), strict=True):
        assert part.cells == cells
        slice_ = warehouse.cells[part.first : part.first + part.cells]
        torch.testing.assert_close(slice_.std(), torch.tensor((2 / (cells * 64)) ** 0.5), rtol=0.05, atol=0)
    attention = layers[1].attention
    rows = attention.rows.weight
    torch.testing.assert_close(rows.std(), torch.tensor((2 / rows.shape[0]) ** 0.5), rtol=0.05, atol=0)
    torch.testing.assert_close(attention.reduce.weight.std(), torch.tensor((2 / 16) ** 0.5), rtol=0.1, atol=0)
    for bias in (attention.rows.bias, attention.reduce.bias, layers[1].bias):
        assert not bias.any()
    assert attention.temperature == 0


def test_a_bias_where_the_norm_is_a_layer_norm():
    for norm, has in (("batch", False), ("layer", True)):
        attention = blocks.create("kw", 8, 8, attention_norm=norm).conv.attention
        assert (attention.reduce.bias is not None) is has


def copies(block):
    with torch.device("meta"):
        empty = blocks.create("kw", 6, 4, 3, ratio=2)
    empty = empty.to_empty(device="cpu")
    empty.load_state_dict(block.state_dict())
    return [copy.deepcopy(block), pickle.loads(pickle.dumps(block)), empty.eval()]


def test_copies_have_a_warehouse_of_their_own_registered_once(lived_in):
    block = at(lived_in(blocks.create("kw", 6, 4, 3, ratio=2)), 0.4).eval()
    assert [key for key in block.state_dict() if "cells" in key] == ["warehouse.cells"]
    x = torch.randn(2, 6, 5, 5)
    y = block(x)
    for each in copies(block):
        assert torch.equal(each(x), y)
        assert each.conv.warehouse is each.warehouse
        assert each.warehouse is not block.warehouse
        with torch.no_grad():
            each.warehouse.cells.zero_()
        constant = each(x)
        assert torch.equal(constant, constant[:1, :, :1, :1].expand_as(constant))
    assert torch.equal(block(x), y)


def test_casts_reach_the_warehouse_and_spare_the_temperature():
    block = at(blocks.create("kw", 8, 8, ratio=2), 0.999)
    cast = copy.deepcopy(block).bfloat16()
    assert {p.dtype for p in cast.parameters()} == {torch.bfloat16}
    assert cast.conv.attention.temperature.dtype == torch.float32
    torch.testing.assert_close(cast.conv.attention.temperature.item(), 0.999)
    seen = []
    for module in cast.modules():
        module.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    cast(torch.randn(2, 8, 6, 6, dtype=torch.bfloat16))
    assert set(seen) == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        conv = block.conv
        assert conv(torch.randn(2, 8, 6, 6)).dtype == torch.bfloat16
        biased = pair([ConvSpec(8, 8, 3)], Ratios(Fraction(1)))[1][0]
        assert biased(torch.randn(2, 8, 6, 6)).dtype == torch.bfloat16


def test_the_temperature_falls_over_the_first_fifteenth_of_a_training():
    block = blocks.create("kw", 4, 4)
    annealing = Annealing(block, steps_per_epoch=5)
    seen = []
    for _ in range(102):
        annealing.step()
        seen.append(block.conv.attention.temperature.item())
    assert seen[0] == pytest.approx(1 - 1 / 100)
    assert seen[49] == pytest.approx(0.5)
    assert seen[98] == pytest.approx(1 / 100)
    assert seen[99:] == [0, 0, 0]
    again = Annealing(block, steps_per_epoch=5)
    again.load_state_dict({"step": 30})
    again.step()
    assert block.conv.attention.temperature.item() == pytest.approx(1 - 31 / 100)


def test_mixing_multiplies_every_row_with_every_cell():
    block = blocks.create("kw", 8, 6, 3, groups=2, ratio=2).eval()
    counted = []
    for module in block.modules():
        if isinstance(module, Mix):
            module.register_forward_hook(lambda module, args, output: counted.append((args[0].numel(), output.shape)))
    block(torch.randn(1, 8, 5, 5))
    assert counted == [(9 * 18, (9, 6 * 4))]


def test_errors_say_what_to_do():
    with pytest.raises(HarnessError, match="ratio 3"):
        blocks.create("kw", 8, 8, ratio=3)
