"""What every block promises beside its numbers: declaration, refusals, counts, memory, state, compilation."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from dataclasses import replace

import pytest
import torch
from metric_cells import CELL, read
from test_blocks_places import images, make, nearest, places, usual_size, with_sizes
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from harness import blocks
from harness.blocks import BLOCKS
from harness.errors import HarnessError, UnknownName, Unsupported
from harness.records import Variant

UNITS = {
    "conv": 2.00,
    "repvgg": 3.00,
    "acb": 4.00,
    "dbb": 9.15,
    "qarepvgg": 3.00,
    "mobileone": 6.00,  # the input, five convolutions' outputs
    "repmixer": 4.00,  # the input, two convolutions' outputs, the change that its scale multiplies
    "repvgg_dw": 3.00,
    "replk": 3.00,
    "unirep": 4.00,  # k 5: the input, three convolutions' outputs
    "rm_repvgg": 2.00,  # the input, two convolutions' outputs of half the channels
    "dyrep": 2.00,
    "rm": 4.00,  # the input, two convolutions' outputs, the ReLU's
    "expand_fc": 9.00,  # the input, two maps of four times the channels
    "expand_cl": 10.29,  # the same, one of them with a rim of one pixel, and the norm's input
    "expand_ck": 6.29,  # k 5: the input, one such map with its rim, the norm's input
    "ecb": 6.36,  # the input, a map of twice the channels and three, all with a rim
    # one kernel for each of 8 samples is 0.18 of the map, a mixture of experts keeps it once
    "condconv": 2.18,
    "dyconv": 2.18,
    "kw": 2.19,
    "weightnet": 2.18,
    "cgc": 2.38,  # the gate and the gated kernel
    "odconv": 3.19,  # the scaled input too
    "dcd": 4.00,  # the input, the convolution's output and the path's; what the norm sees
    "involution": 3.06,
    "carafe": 3.14,
    "deformable": 2.70,  # offsets and masks of 27 channels
    "grouped": 2.00,
    "shuffle": 2.00,
    "dilated": 2.00,
    # what the norm behind the convolution makes of it, kept by the attention
    "se": 3.00,
    "ese": 3.00,
    "eca": 3.00,
    "ceca": 3.00,
    "srm": 3.00,
    "gc": 3.02,
    "ge": 4.02,
    "cbam": 4.08,
    "coord": 4.08,
    "bam": 5.39,
    "ran": 5.84,
    "sk": 5.00,
    "splat": 5.00,
    "depthwise_separable": 4.00,
    "bottleneck": 3.00,  # the input, four maps of a quarter of the channels, the last norm's input
    "inverted_residual": 38.00,  # the input, six maps of six times the channels, the last norm's input
    "inception": 3.88,
    "dense": 18.00,
    "residual": 4.00,
    "stacked_3x3": 4.00,
}
"""Saved for backward, in input maps, 64 -> 64 on 8x64x56x56 in training: equal to two decimals."""

AT_MOST = {
    "orepa": 2.17,
    "orepa_vgg": 3.15,
    "orepa_1x1": 2.01,
    "orepa_stem": 2.12,
    "linearized": 2.15,
    "dirac": 2.05,
    "doconv": 2.05,
    "clb": 1.05,  # no norm, so nothing but its input
}
"""Beyond the maps there are kernels; how many are kept depends on how they are composed."""

CONV = 9 * 64 * 64
PARAMETERS = {
    "conv": 36_992,
    "repvgg": 41_344,
    "acb": 61_824,
    "dbb": 86_784,
    "orepa": 128_000,
    "orepa_vgg": 128_192,
    "qarepvgg": 9 * 64 * 64 + 64 * 64 + 2 * 128,
    "mobileone": 4 * 9 * 64 * 64 + 64 * 64 + 6 * 128,
    "repmixer": 9 * 64 + 64 + 4 * 128 + 64,
    "repvgg_dw": 9 * 64 + 64 + 64 + 2 * 128,
    "replk": (49 + 25) * 64 * 64 + 2 * 128,
    "unirep": (25 + 9 + 9) * 64 + 3 * 128,
    "dyrep": 36_992,
    "linearized": 86_784 - 6 * 128 + 4 * 64 + 128,  # dbb's without its norms, scales, one norm
    "dirac": 9 * 64 * 64 + 2 * 64 + 128,
    "doconv": 9 * 64 * 64 + 64 * 9 * 9 + 128,
    "expand_cl": 64 * 256 + 9 * 256 * 256 + 256 * 64 + 128,
    "expand_ck": 2 * 9 * 64 * 256 + 128,  # k 5
    "expand_fc": 64 * 256 + 256 + 256 * 256 + 256 + 256 * 64 + 64,
    "clb": 9 * 64 * 256 + 256 + 256 * 64 + 64,
    "ecb": (9 * 64 * 64 + 64) + (64 * 128 + 128 + 9 * 128 * 64 + 64) + 3 * (64 * 64 + 3 * 64),
    "rm": 2 * (9 * 64 * 64 + 128),
    "rm_repvgg": 9 * 64 * 32 + 64 * 32 + 3 * 64,
    "orepa_1x1": 2 * 64 * 64 + 64 * 64 + 2 * 64 + 2 * 64,  # origin and two factors, scales, batch norm
    "orepa_stem": 2 * (128_000 - 2 * 64) + 2 * 64,  # k 5: two of orepa's kernels, batch norm
    "condconv": 4 * CONV + (64 + 1) * 4 + 128,
    "dyconv": 4 * CONV + 64 * 17 + (17 + 1) * 4 + 128,
    "odconv": CONV + 64 * 16 + 32 + (16 + 1) * (64 + 64 + 9) + 128,
    "kw": CONV + 64 * 16 + 32 + (16 + 1) * (9 + 1) * 9 + 128,  # nine cells of 64 x 64
    "dcd": CONV + 2 * 64 * 16 + 4 * 16 + 4 * 64 * 16 + 16 * 16 + 16 * 16**2 + 16 * 64 + 128,  # d = q = 16
    "weightnet": CONV + 16 * 64 + 16 + 16 * 128 + 128 + 128,
    "cgc": 36_992 + 775,
    "involution": 64 * 16 + 32 + (16 + 1) * 9 * 4 + 128,
    "carafe": 64 * 64 + 64 + 577 * 9 + 128,
    "deformable": CONV + (9 * 64 + 1) * 27 + 128,
    "grouped": CONV // 8 + 128,
    "shuffle": CONV // 8 + 128,
    "dilated": CONV + 128,
    "se": 36_992 + 1096,
    "ese": 36_992 + 4160,
    "eca": 36_992 + 3,
    "ceca": 36_992 + 3,
    "ge": 36_992,
    "gc": 36_992 + 1177,
    "cbam": 36_992 + 612,
    "bam": 36_992 + (64 * 4 + 4 + 8 + 4 * 64 + 64) + (64 * 4 + 4 + 8 + 2 * (9 * 16 + 4 + 8) + 4 + 1),
    "srm": 36_992 + 4 * 64,
    "ran": 36_992 + 2632,
    "coord": 36_992 + 1552,
    "sk": 80_192,
    "splat": 43_488,
    "depthwise_separable": 64 * 9 + 64 * 64 + 4 * 64,
    "bottleneck": 64 * 16 + 9 * 16 * 16 + 16 * 64 + 4 * 16 + 128,
    "inverted_residual": 64 * 384 + 9 * 384 + 384 * 64 + 4 * 384 + 128,
    "inception": 11_224,  # against torchvision's in a test of its own
    "dense": sum(2 * w + w * 128 + 256 + 9 * 128 * 32 for w in (64, 96)) + 2 * 128 + 128 * 64 + 128,
    "residual": 2 * CONV + 4 * 64,
    "stacked_3x3": 2 * CONV + 4 * 64,  # k 5
}


def saved_bytes(block: nn.Module, x: Tensor) -> int:
    """Each storage that a node of the output's graph holds, once, the block's own tensors left out.

    The metric asks the saved-tensor hooks; this walks the graph that the forward has left behind.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*block.parameters(), *block.buffers())}
    todo, seen, kept = [block(x).grad_fn], set(), dict[int, int]()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        held = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        for tensor in tree_leaves([held, getattr(node, "saved_tensors", ())]):
            if isinstance(tensor, Tensor) and tensor.ndim:  # a Python number stands there as a tensor too
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(size for address, size in kept.items() if address not in own)


@pytest.mark.parametrize("name", [*UNITS, *AT_MOST])
def test_bytes_saved_for_backward(name):
    x = torch.randn(8, 64, 56, 56)
    units = saved_bytes(make(name, 64, 64).train(), x) / x.untyped_storage().nbytes()
    if name in UNITS:
        assert round(units, 2) == UNITS[name]
    else:
        assert units <= AT_MOST[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_the_metric_reads_what_the_graph_holds(name):
    """saved_memory's bytes against this file's own count, and its branches against their sum."""
    c_in, c_out, k, stride, groups, dilation = nearest(name, (8, 8, usual_size(name), 1, 1, 1))
    sizes = {"c_in": c_in, "c_out": c_out, "stride": stride, "groups": groups, "dilation": dilation}
    cell = replace(CELL, block=Variant(name), backbone=Variant("layer", sizes), kernel_size=k)
    reading = read("saved_memory", cell)["saved_memory"]
    x = torch.randn(cell.batch_size, c_in, cell.image_size, cell.image_size)
    block = blocks.create(name, c_in, c_out, k, stride, groups, dilation).train()
    assert reading.values == (saved_bytes(block, x),)
    assert sum(reading.facts["branches"].values()) == reading.values[0]


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts_of_the_reference(name, count):
    block = make(name, 64, 64)
    assert sum(parameter.numel() for parameter in block.parameters()) == count
    if not block.fusable():
        return
    deployed = 64 * 64 // block.deployed.groups * block.spec.kernel_size**2 + 64
    deployed += sum(parameter.numel() for parameter in block.after.parameters())
    if name == "rm":  # two convolutions, with as many channels more between them as it copies
        deployed = 9 * 64 * 128 + 128 + 9 * 128 * 64 + 64
    assert sum(parameter.numel() for parameter in block.fused().parameters()) == deployed


def test_every_block_has_its_counts():
    assert set(PARAMETERS) == set(BLOCKS) == {*UNITS, *AT_MOST}


@pytest.mark.parametrize("name", BLOCKS)
def test_declaration_and_constructor_agree(name):
    declared = blocks.declaration(name)
    assert json.loads(json.dumps(declared)) == declared
    assert declared["name"] == name
    assert declared["evaluations"] == declared["options"].get("reparam", {}).get("choices", [])
    assert declared["fusable"] == hasattr(BLOCKS[name], "fused")
    assert declared["sister"] is None or "online" in blocks.declaration(declared["sister"])["evaluations"]
    assert not ("online" in declared["evaluations"] and declared["sister"])
    assert declared["evaluations"] != ["offline"] or declared["sister"] or name == "rm"  # rm's ReLU: nothing fits
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
    and name != "dilated"
]
"""Not those with a ReLU inside, that look at the whole map, or whose taps are further apart anyway: those have tests of
their own."""


@pytest.mark.parametrize("name", [name for name in DILATED if usual_size(name) == 3])  # a 1x1 has nothing to dilate
def test_dilation_is_not_dropped_in_training(name, lived_in):
    """A k x k tap at distance d answers to a point; with the dilation dropped it would be at distance 1."""
    channels = BLOCKS[name].channel_multiple
    block = lived_in(make(name, channels, channels, dilation=3)).double().eval()
    x = torch.zeros(1, channels, 9, 9, dtype=torch.float64)
    zero, x[0, 0, 4, 4] = block(x.clone()), 1.0
    answers = (block(x) - zero)[0, 0].abs() > 1e-9
    assert answers[1, 1]
    assert answers[7, 7]
    assert not answers[3, 3]
    assert not answers[5, 5]


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
@pytest.mark.parametrize("name", ["repvgg", "dbb", "orepa"])
def test_compiles_with_inductor(name, lived_in):
    torch.compiler.reset()
    block = lived_in(make(name, 4, 4)).train()
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
