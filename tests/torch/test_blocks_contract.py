"""What every block promises beside its numbers: declaration, refusals, state, training, compilation."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from itertools import product

import pytest
import torch
from block_places import images, make, places, usual_size, with_sizes

from harness import blocks
from harness.blocks import BLOCKS
from harness.errors import HarnessError, UnknownName, Unsupported


@pytest.mark.parametrize("name", BLOCKS)
def test_declaration_and_constructor_agree(name):
    declared = blocks.declaration(name)
    assert json.loads(json.dumps(declared)) == declared
    assert declared["name"] == name
    assert declared["evaluations"] == declared["options"].get("reparam", {}).get("choices", [])
    assert declared["fusable"] == hasattr(BLOCKS[name], "fused")
    assert declared["sister"] is None or "online" in blocks.declaration(declared["sister"])["evaluations"]
    assert not ("online" in declared["evaluations"] and declared["sister"])
    assert declared["evaluations"] != ["offline"] or declared["sister"] or declared["no_sister"]
    taken = {
        parameter.name: parameter.default
        for parameter in inspect.signature(BLOCKS[name]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert taken == {key: option["default"] for key, option in declared["options"].items()}
    for key, option in declared["options"].items():
        assert option["what"]
        for value in option["choices"]:
            make(name, 64, 64, **{key: value})
        assert isinstance(option["default"], bool) == (option["choices"] == [True, False])


@pytest.mark.parametrize("name", BLOCKS)
def test_a_value_that_is_not_declared_is_refused_with_a_remedy(name):
    for key, option in blocks.declaration(name)["options"].items():
        for value in ["nonsense", "true", "True", "", 1, 0, 1.0, None, True]:
            if any(type(value) is type(choice) and value == choice for choice in option["choices"]):
                continue
            with pytest.raises(Unsupported, match=f"no {key} {value!r}") as refused:
                make(name, 4, 4, **{key: value})
            assert " or ".join(map(str, option["choices"])) in refused.value.remedy


@pytest.mark.parametrize("name", [name for name in BLOCKS if BLOCKS[name].at_least_one])
def test_one_of_the_options_that_are_declared_so_must_be_on(name):
    needed = blocks.declaration(name)["limits"]["at_least_one"]
    assert all(blocks.declaration(name)["options"][key]["choices"] == [True, False] for key in needed)
    off = dict.fromkeys(needed, False)
    with pytest.raises(Unsupported, match="nothing left") as refused:
        make(name, 4, 4, **off)
    assert refused.value.remedy
    for key in needed:
        make(name, 4, 4, **{**off, key: True})


NOWHERE = [
    {"kernel_size": 4},
    {"kernel_size": 33},
    {"kernel_size": 0},
    {"kernel_size": 3.0},
    {"stride": 0},
    {"stride": True},
    {"dilation": 0},
    {"groups": 3},
    {"groups": 0},
    {"c_in": 6, "groups": 4},
    {"c_out": 6, "groups": 4},
    {"c_out": 0},
    {"padding": -1},
    {"padding": 1.0},
    {"padding": True},
]


@pytest.mark.parametrize("name", BLOCKS)
def test_what_no_block_can_do_is_refused_with_a_remedy(name):
    for place in NOWHERE:
        with pytest.raises(Unsupported) as refused:
            blocks.create(name, **{"c_in": 4, "c_out": 4, "kernel_size": usual_size(name), **place})
        assert refused.value.remedy, place


@pytest.mark.parametrize(("name", "sister"), [("dbb", "orepa"), ("acb", "orepa"), ("repvgg", "orepa_vgg")])
def test_a_block_with_branch_norms_names_the_one_to_evaluate_online(name, sister):
    with pytest.raises(Unsupported, match=f"block {sister} has the online evaluation"):
        blocks.create(name, 4, 4, reparam="online")


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="orepa"):
        blocks.create("orpea", 4, 4)
    with pytest.raises(UnknownName, match="scaling"):
        blocks.create("orepa", 4, 4, scalling="none")
    with pytest.raises(HarnessError):
        blocks.declaration("nothing_like_it")


@pytest.mark.parametrize("name", BLOCKS)
def test_state_copies_and_pickles(name, lived_in):
    block = lived_in(make(name, 4, 6, groups=2)).eval()
    x = images(block, 2, 7, 5)
    fresh = make(name, 4, 6, groups=2).eval()
    fresh.load_state_dict(block.state_dict())
    for twin in (fresh, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(twin(x), block(x))
        for a, b in zip(twin.parameters(), block.parameters(), strict=True):
            assert a.stride() == b.stride()
            assert a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_moved_from_meta_has_its_constants(name):
    with torch.device("meta"):
        block = make(name, 4, 4)
    block = block.to_empty(device="cpu")
    block.load_state_dict(make(name, 4, 4).state_dict())
    assert block(images(block, 2, 5, 5)).isfinite().all()


@pytest.mark.parametrize(("name", "kernel_size"), with_sizes(BLOCKS, 1, 3, 5, 7))
def test_nothing_is_left_uninitialised(name, kernel_size):
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # new storage is NaN
    try:
        assert torch.empty(1).isnan()
        wanted = [
            (8, c_out, kernel_size, stride, groups, 1) for c_out, groups, stride in [(8, 1, 1), (12, 4, 2), (8, 8, 1)]
        ]
        for place in places(name, wanted):
            block = blocks.create(name, *place)
            y = block(images(block, 2, 6, 6))
            y.square().sum().backward()
            tensors = [*block.parameters(), *block.buffers(), *(p.grad for p in block.parameters()), y]
            assert all(tensor.isfinite().all() for tensor in tensors)
            if block.fusable():
                assert all(tensor.isfinite().all() for tensor in block.fused().parameters())
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.mark.parametrize(
    ("name", "reparam"), [(name, way) for name in BLOCKS for way in blocks.declaration(name)["evaluations"] or [None]]
)
def test_training_lowers_the_loss_and_moves_every_parameter(name, reparam):
    block = make(name, 6, 6, **({"reparam": reparam} if reparam else {}))
    x = images(block, 8, 8, 8)
    target = torch.randn(block(x).shape)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.02, momentum=0.9)
    before = copy.deepcopy(dict(block.named_parameters()))
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (block(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    still = [label for label, parameter in block.named_parameters() if torch.equal(parameter, before[label])]
    # What DBB adds to a branch before a batch norm in training is taken away again: its gradient may round to zero.
    assert not [label for label in still if not label.endswith("bias")]


DILATED = [
    name
    for name in BLOCKS
    if BLOCKS[name].fusable()
    and usual_size(name) > 1
    and BLOCKS[name].dilations is None
    and BLOCKS[name].family != "attention"
]
"""Not those with a ReLU inside or that look at the whole map: those have tests of their own."""


@pytest.mark.parametrize("name", [name for name in DILATED if usual_size(name) == 3])  # a 1x1 has nothing to dilate
def test_dilation_is_not_dropped_in_training(name, lived_in):
    """A k x k tap at distance d answers to a point; with the dilation dropped it would be at distance 1."""
    channels = BLOCKS[name].channel_multiple
    block = lived_in(make(name, channels, channels, dilation=3)).double().eval()
    reach = block.deployed.dilation  # a block's taps may be further apart than the place's
    middle = reach + 1
    x = torch.zeros(1, channels, 2 * middle + 1, 2 * middle + 1, dtype=torch.float64)
    zero, x[0, 0, middle, middle] = block(x.clone()), 1.0
    answers = (block(x) - zero)[0, 0].abs() > 1e-9
    assert reach >= 3
    around = [(i, j) for i, j in product((-1, 0, 1), repeat=2) if (i, j) != (0, 0)]
    assert any(answers[middle + i * reach, middle + j * reach] for i, j in around)
    assert not any(answers[middle + i, middle + j] for i, j in around)


@pytest.mark.parametrize("name", BLOCKS)
def test_compiles_into_one_graph(name, lived_in):
    torch.compiler.reset()
    block = lived_in(make(name, 4, 4, groups=2)).eval()
    x = images(block, 2, 6, 6)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x), rtol=1e-5, atol=1e-5)
    gradients = []
    for function in (compiled, block):
        block.zero_grad()
        function(x).square().mean().backward()
        gradients.append([parameter.grad for parameter in block.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiles_with_inductor(lived_in):
    """One that composes its kernel by hand and by rules of its own for backward: what could trip over a compiler."""
    torch.compiler.reset()
    block = lived_in(make("orepa", 4, 4)).train()
    twin = copy.deepcopy(block)
    x = torch.randn(2, 4, 6, 6)
    y = torch.compile(block, fullgraph=True)(x)
    wanted = twin(x)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)
    for output in (y, wanted):
        output.square().mean().backward()
    for a, b in zip(block.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", BLOCKS)
def test_exports_with_any_batch(name, lived_in):
    block = lived_in(make(name, 4, 4)).eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(block, (images(block, 2, 6, 6),), dynamic_shapes={"x_NCHW": {0: batch}})
    x = images(block, 5, 6, 6)
    torch.testing.assert_close(exported.module()(x), block(x), rtol=1e-5, atol=1e-5)
