"""Blocks without norms in their branches: each against its paper's equation on features, written again here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import blocks
from harness.blocks import BLOCKS, Block, algebra
from harness.blocks.parts.cached import CachedKernel
from harness.errors import Unsupported

COMPOSED = ("doconv", "dirac", "expand_cl", "expand_ck", "expand_fc", "clb", "ecb")
SHAPES = [(9, 8), (5, 7), (2, 1), (1, 1)]
"""Of inputs, some smaller than a kernel."""

Place = tuple[int, int, int, int, int, int, int | None]
"""c_in, c_out, kernel size, stride, groups, dilation, padding."""

SQUARE: list[Place] = [
    (4, 4, 3, 1, 1, 1, None),
    (4, 6, 3, 2, 1, 1, None),
    (6, 4, 5, 1, 2, 1, None),
    (4, 8, 3, 2, 4, 2, None),
    (6, 6, 3, 1, 6, 1, 3),
    (3, 5, 7, 2, 1, 1, 6),
    (6, 9, 3, 1, 3, 2, 1),
    (4, 4, 5, 1, 1, 1, 0),
]
DENSE: list[Place] = [(4, 4, 3, 1, 1, 1, None), (3, 6, 5, 2, 1, 2, None), (6, 4, 3, 1, 1, 1, 4), (4, 4, 7, 1, 1, 1, 1)]
WHERE: dict[str, list[Place]] = {
    "doconv": [*SQUARE, (6, 9, 1, 2, 3, 1, 1)],
    "dirac": [(*place[:3], 1, *place[4:]) for place in SQUARE] + [(8, 4, 1, 1, 2, 1, 1)],
    "expand_cl": SQUARE,
    "expand_ck": [
        (4, 4, 5, 1, 1, 1, None),
        (3, 4, 7, 2, 1, 1, None),
        (4, 6, 9, 1, 2, 1, 6),
        (4, 4, 5, 2, 4, 2, None),
        (2, 2, 13, 1, 1, 1, None),
    ],
    "expand_fc": [(4, 6, 1, 1, 1, 1, None), (6, 4, 1, 2, 2, 1, 1), (6, 6, 1, 1, 6, 3, None)],
    "clb": DENSE,
    "ecb": [
        (4, 4, 3, 1, 1, 1, None),
        (3, 6, 3, 2, 1, 1, None),
        (4, 8, 3, 1, 2, 2, None),
        (6, 6, 3, 1, 6, 1, 3),
        (4, 4, 3, 1, 2, 2, 1),
    ],
}
OTHERWISE: dict[str, list[dict[str, str | int | bool]]] = {
    "doconv": [{}, {"layout": "reference"}, {"multiplier": 2}, {"layout": "reference", "multiplier": 2}],
    "dirac": [{}],
    "expand_cl": [{}, {"bias": True, "rate": 2}, {"bias": True, "norm": False, "expand_input": False}],
    "expand_ck": [{}, {"bias": True, "norm": False, "rate": 2, "expand_input": False}],
    "expand_fc": [{}, {"bias": False, "norm": True, "rate": 8}],
    "clb": [
        {"width": 16},
        {"residual": True, "norm": True},
        {"bias": False, "composition": "delta"},
        {"composition": "delta", "residual": True},
    ],
    "ecb": [{}, {"identity": True}, {"norm": True}],
}
CASES = [(name, place, options) for name in COMPOSED for place in WHERE[name] for options in OTHERWISE[name]]


def doconv(x: Tensor, block: Block) -> Tensor:
    """One filter and one input channel at a time; the authors' reshaping for `reference`."""
    s, w, d = block.spec, block.linear.weight, block.linear.depthwise
    (c_out, inputs, outputs), taps = w.shape, s.kernel_size**2
    if d is None:
        return F.conv2d(x, w.reshape(c_out, inputs, 1, 1), None, s.stride, s.padding, s.dilation, s.groups)
    diagonal = torch.zeros(taps, outputs, dtype=w.dtype)
    for column in range(outputs):
        diagonal[column % taps, column] = 1
    if block.linear.layout == "reference":
        reshaped = torch.reshape(w, (c_out // s.groups, s.c_in, outputs))
        kernel = torch.reshape(torch.einsum("ims,ois->oim", d + diagonal, reshaped), (c_out, inputs, taps))
    else:
        read = [[o // (c_out // s.groups) * inputs + i for i in range(inputs)] for o in range(c_out)]
        kernel = torch.stack(
            [torch.stack([(d[read[o][i]] + diagonal) @ w[o, i] for i in range(inputs)]) for o in range(c_out)]
        )
    kernel = kernel.reshape(c_out, inputs, s.kernel_size, s.kernel_size)
    return F.conv2d(x, kernel, None, s.stride, s.padding, s.dilation, s.groups)


def dirac(x: Tensor, block: Block) -> Tensor:
    s, p = block.spec, block.linear
    (c_out, inputs, k, _), rows = p.weight.shape, []
    for o in range(c_out):
        own = torch.zeros(inputs, k, k, dtype=x.dtype)
        place = o % (c_out // s.groups)
        if place < inputs:
            own[place, k // 2, k // 2] = 1
        length = torch.sqrt(sum(tap**2 for tap in p.weight[o].flatten()))
        rows.append(p.alpha[o] * own + p.beta[o] * p.weight[o] / length)
    return F.conv2d(x, torch.stack(rows), None, 1, s.padding, s.dilation, s.groups)


def in_a_row(x: Tensor, block: Block, factors: list[nn.Conv2d]) -> Tensor:
    """All the zeros first; the stride on the last factor that is not a 1x1."""
    s = block.spec
    y = F.pad(x, [s.padding] * 4)
    sizes = [factor.weight.shape[-1] for factor in factors]
    strided = max((i for i, size in enumerate(sizes) if size > 1), default=0)
    for i, factor in enumerate(factors):
        y = F.conv2d(y, factor.weight, factor.bias, s.stride if i == strided else 1, 0, s.dilation, s.groups)
    return y


def expand(x: Tensor, block: Block) -> Tensor:
    return in_a_row(x, block, list(block.linear.factors))


def plus(y: Tensor, x: Tensor, block: Block) -> Tensor:
    """y + x, with the margin's zeros around it, where their shapes allow it."""
    same = block.spec.c_in == block.spec.c_out and block.spec.stride == 1
    return y + F.pad(x, [block.spec.margin] * 4) if same else y


def clb(x: Tensor, block: Block) -> Tensor:
    y = in_a_row(x, block, list(block.linear[0].factors))
    return plus(y, x, block) if "residual" in block.asked else y


def ecb(x: Tensor, block: Block) -> Tensor:
    s = block.spec
    three, chain, *edges = list(block.linear)[:5]
    y = in_a_row(x, block, list(three.factors))

    def behind(point: nn.Conv2d) -> Tensor:
        """The 1x1 on x alone, and its bias around it."""
        inner, p = F.conv2d(x, point.weight, point.bias, groups=s.groups), s.padding
        shape = (*inner.shape[:2], inner.shape[2] + 2 * p, inner.shape[3] + 2 * p)
        outer = point.bias[:, None, None].expand(shape).clone()
        outer[:, :, p : p + inner.shape[2], p : p + inner.shape[3]] = inner
        return outer

    second = chain.factors[1]
    y = y + F.conv2d(behind(chain.factors[0]), second.weight, second.bias, s.stride, 0, s.dilation, s.groups)
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=x.dtype)
    laplacian = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=x.dtype)
    for edge, mask in zip(edges, (sobel, sobel.T, laplacian), strict=True):
        seen = F.conv2d(behind(edge.point), mask.expand(s.c_out, 1, 3, 3), None, s.stride, 0, s.dilation, s.c_out)
        y = y + edge.scale[:, None, None] * seen + edge.bias[:, None, None]
    return plus(y, x, block) if "identity" in block.asked else y


PAPERS: dict[str, Callable[[Tensor, Block], Tensor]] = {
    "doconv": doconv,
    "dirac": dirac,
    "expand_cl": expand,
    "expand_ck": expand,
    "expand_fc": expand,
    "clb": clb,
    "ecb": ecb,
}


def built(name: str, place: Place, reparam: str, options: dict[str, str | int | bool]) -> Block:
    block = blocks.create(name, *place, reparam=reparam, **options).double().eval()
    block.asked = {key for key, value in options.items() if value is True}
    return block


def with_gradients(y: Tensor, x: Tensor, block: nn.Module) -> dict[str, Tensor]:
    """The output, and the gradients of the input and of every parameter."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    names, parameters = zip(*block.named_parameters(), strict=True)
    gradients = torch.autograd.grad((y * weights + y**2).sum(), [x, *parameters])
    return dict(zip(["y", "x", *names], [y, *gradients], strict=True))


def agree(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    assert (found["y"] - wanted["y"]).abs().max() <= 1e-12 * wanted["y"].abs().max()
    largest = max(tensor.abs().max().item() for tensor in wanted.values())
    for name, tensor in found.items():
        assert (tensor - wanted[name]).abs().max().item() <= 1e-12 * largest, name


@pytest.mark.parametrize(("name", "place", "options"), CASES, ids=str)
def test_a_block_is_its_papers_equation(name, place, options, lived_in):
    """Online, offline and fused, every pixel of maps of all sizes, with the gradients of all parameters."""
    online = lived_in(built(name, place, "online", options))
    offline = built(name, place, "offline", options)
    offline.load_state_dict(online.state_dict())
    c_in, _, k, _, _, dilation, padding = place
    least = 1 if padding is None else max(1, dilation * (k - 1) + 1 - 2 * padding)
    for height, width in SHAPES:
        x = torch.randn(2, c_in, max(height, least), max(width, least), dtype=torch.float64, requires_grad=True)
        wanted = with_gradients(online.bn(PAPERS[name](x, online)), x, online)
        for block in (online, offline):
            agree(with_gradients(block(x), x, block), wanted)
        assert (online.fused()(x) - wanted["y"]).abs().max() <= 1e-12 * wanted["y"].abs().max()


@pytest.mark.parametrize("name", COMPOSED)
def test_the_rim_and_the_interior_of_a_fused_block_each_by_itself(name, lived_in):
    """Both ways, so that a small rim cannot hide behind a large interior."""
    place = WHERE[name][0]
    for options in OTHERWISE[name]:
        block = lived_in(built(name, place, "offline", options))
        x = torch.randn(2, place[0], 17, 18, dtype=torch.float64)
        y, fused, rim = block(x), block.fused()(x), block.spec.kernel_size // 2
        inside = (slice(None), slice(None), slice(rim, 17 - rim), slice(rim, 18 - rim))
        assert (fused[inside] - y[inside]).abs().max() <= 1e-12 * y[inside].abs().max()
        for edge in ((0, 2), (16, 2), (0, 3), (17, 3)):
            wanted = y.select(edge[1], edge[0])
            assert (fused.select(edge[1], edge[0]) - wanted).abs().max() <= 1e-12 * wanted.abs().max()


@pytest.mark.parametrize("name", COMPOSED)
def test_training_statistics_do_not_tell_the_evaluations_apart(name, lived_in):
    place, options = WHERE[name][0], OTHERWISE[name][-1]
    online = lived_in(built(name, place, "online", options)).train()
    offline = built(name, place, "offline", options).train()
    offline.load_state_dict(online.state_dict())
    x = torch.randn(4, place[0], 6, 7, dtype=torch.float64)
    found, wanted = online(x), offline(x)
    assert (found - wanted).abs().max() <= 1e-12 * wanted.abs().max()
    for label, buffer in online.named_buffers():
        assert torch.allclose(buffer, offline.get_buffer(label), rtol=1e-12, atol=1e-12), label


@pytest.mark.parametrize("name", COMPOSED)
def test_the_kernel_is_composed_outside_autocast(name, lived_in):
    block = lived_in(blocks.create(name, 8, 8, *WHERE[name][0][2:3], reparam="online"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = block._composed()
    for found, wanted in zip(inside, block._composed(), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)
    x = torch.randn(2, 8, 6, 6)
    for mode in (block.train(), block.eval()):
        wanted = mode(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert (mode(x).float() - wanted).abs().max() <= 0.05 * wanted.abs().max()


@pytest.mark.parametrize("name", COMPOSED)
def test_in_eval_the_kernel_is_composed_once_and_anew_after_a_step(name, lived_in, monkeypatch):
    made = []
    composed = BLOCKS[name]._composed
    monkeypatch.setattr(BLOCKS[name], "_composed", lambda block: made.append(1) or composed(block))
    block = lived_in(blocks.create(name, 4, 4, *WHERE[name][0][2:3], reparam="online")).eval()
    assert isinstance(block._cache, CachedKernel)
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        before = block(x)
        assert torch.equal(block(x), before)
    assert len(made) == 1
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    block(x).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        after = block(x)
    assert len(made) == 3
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, block.fused()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", COMPOSED)
def test_the_other_evaluation_compiles_into_one_graph_and_exports_with_any_batch(name, lived_in):
    """That of the default options does so for every block of the registry."""
    torch.compiler.reset()
    options = OTHERWISE[name][-1]
    (reparam,) = {"online", "offline"} - {BLOCKS[name].options()["reparam"].default}
    block = lived_in(blocks.create(name, 4, 4, *WHERE[name][0][2:3], reparam=reparam, **options)).eval()
    x = torch.randn(2, 4, 6, 6)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x), rtol=1e-5, atol=1e-5)
    compiled(x).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in block.parameters())
    batch = {"x_NCHW": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(block, (x,), dynamic_shapes=batch).module()
    y = torch.randn(5, 4, 6, 6)
    torch.testing.assert_close(exported(y), block(y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "place", "what"),
    [
        ("dirac", {"stride": 2}, "no stride 2"),
        ("expand_cl", {"kernel_size": 1}, "no kernel size 1"),
        ("expand_ck", {"kernel_size": 3}, "no kernel size 3"),
        ("expand_fc", {"kernel_size": 3}, "no kernel size 3"),
        ("ecb", {"kernel_size": 5}, "no kernel size 5"),
        ("clb", {"groups": 2}, "no groups"),
        ("doconv", {"multiplier": 3}, "no multiplier 3"),
        ("clb", {"width": 100}, "no width 100"),
    ],
)
def test_what_a_block_cannot_do_is_refused(name, place, what):
    with pytest.raises(Unsupported, match=what) as refused:
        blocks.create(name, 4, 4, **{"kernel_size": BLOCKS[name].kernel_sizes[0], **place})
    assert refused.value.remedy


@pytest.mark.parametrize("groups", [1, 2])
def test_kernels_in_series(groups):
    """k x k then 1x1, 1x1 then k x k, and two larger ones of different sizes; with a bias in between."""
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    for first, second in [((3, 5), (1, 1)), ((1, 1), (3, 5)), ((3, 1), (1, 3)), ((5, 3), (3, 3)), ((1, 1), (1, 1))]:
        w = torch.randn(6, 4 // groups, *first, dtype=torch.float64)
        v, b = torch.randn(8, 6 // groups, *second, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
        wanted = F.conv2d(F.conv2d(x, w, b, groups=groups), v, groups=groups)
        found = F.conv2d(x, algebra.series(w, v, groups), algebra.carry(b, v, groups), groups=groups)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
