"""Suite -> cells, groups, tasks: complete, ordered, and every exclusion explained."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError, SuiteError
from harness.planning import plan
from harness.records import Task, TaskKind
from harness.suite import Expression


def labels(planned, axis="block"):
    return [cell.axes()[axis] for cell in planned.cells]


def test_the_matrix_is_the_product_of_its_axes(suite_of):
    planned = plan(suite_of())
    assert len(planned.cells) == 6
    assert [len(group.cells) for group in planned.groups] == [3, 3]
    assert len({cell.id for cell in planned.cells}) == 6


def test_cells_of_a_group_differ_only_in_the_compared_axis(suite_of):
    for group in plan(suite_of()).groups:
        assert len({cell.without("block") for cell in group.cells}) == 1
        reference = next(cell for cell in group.cells if cell.id == group.reference)
        assert reference.block.name == "conv"


def test_another_axis_can_be_compared(suite_of):
    planned = plan(suite_of(more="compare: {axis: kernel_size, reference: 5}"))
    assert [len(group.cells) for group in planned.groups] == [2, 2, 2]
    assert all(cell.kernel_size == 5 for group in planned.groups for cell in group.cells if cell.id == group.reference)


def test_zipped_axes_go_together(suite_of):
    planned = plan(
        suite_of(
            "axes: {block: conv, backbone: layer, batch_size: [1, 8, 32], image_size: [56, 28, 14]}\n"
            "zip: [[batch_size, image_size]]\nmetrics: params"
        )
    )
    assert [(c.batch_size, c.image_size) for c in planned.cells] == [(1, 56), (8, 28), (32, 14)]


def test_exclusions_carry_their_reason(suite_of):
    planned = plan(suite_of(more="exclude: [{when: block == 'orepa' and kernel_size > 3, because: too slow here}]"))
    assert len(planned.cells) == 5
    assert "too slow here" in planned.excluded[0].reason


def test_include_keeps_what_holds(suite_of):
    planned = plan(suite_of(more="include: ['kernel_size == 3', 'block.name == \"x\" or block == \"conv\"']"))
    assert len(planned.cells) == 4


@pytest.mark.parametrize("rule", ["exclude: \"block == 'dbb'\"", "include: ['kernel_size == 3', 'kernel_size == 11']"])
def test_a_rule_that_matches_nothing_is_refused(suite_of, rule):
    with pytest.raises(SuiteError, match="matches no cell") as caught:
        plan(suite_of(more=rule))
    assert str(caught.value).startswith("test.yaml:4:")


def test_a_misspelt_value_in_a_rule_is_met_with_the_nearest(suite_of):
    with pytest.raises(SuiteError, match='"repvgg" instead of "repvg"'):
        plan(suite_of(more='exclude: ["kernel_size == 5", "block == \'repvg\'"]'))


def test_an_empty_matrix_is_refused(suite_of):
    with pytest.raises(SuiteError, match=r"^test.yaml:2:7: no cell is left"):
        plan(suite_of(more="exclude: kernel_size > 0"))


def test_a_backbone_without_fitting_convolutions_is_refused_with_the_sizes_it_has(suite_of):
    text = "axes: {block: conv, backbone: convnext_tiny%s}\nmetrics: params"
    with pytest.raises(SuiteError, match="7x7"):
        plan(suite_of(text % ""))
    assert plan(suite_of(text % ", where: 7")).cells


def test_a_value_that_no_cell_can_use_is_refused_though_others_could(suite_of):
    with pytest.raises(SuiteError, match="native"):
        plan(suite_of("axes: {block: [conv, native], backbone: resnet18}\nmetrics: params"))
    planned = plan(suite_of("axes: {block: [conv, native], backbone: [resnet18, repvgg_a0]}\nmetrics: params"))
    assert {e.reason for e in planned.excluded if e.cell.block.name == "native"} == {
        "cannot: resnet18 has no re-parameterizable layers of its own"
    }


def test_a_layer_whose_groups_do_not_divide_it_is_refused(suite_of):
    text = "axes: {block: conv, backbone: {layer: {c_in: 64, groups: 48}}}\nmetrics: params"
    with pytest.raises(SuiteError, match="c_in 64 is not a multiple of groups 48"):
        plan(suite_of(text))


@pytest.mark.parametrize(
    ("block", "layer", "says"),
    [
        ("dirac", "stride: 2", "dirac has no stride 2"),
        ("unirep", "groups: 64, dilation: 2", "unirep has no dilation 2"),
        ("clb", "groups: 2", "clb has no groups"),
        ("repvgg_dw", "c_in: 8, c_out: 8", "repvgg_dw is depthwise"),
        ("rm_repvgg", "c_out: 32", "rm_repvgg keeps the number of channels"),
    ],
)
def test_a_layer_beyond_a_blocks_limits_is_refused(suite_of, block, layer, says):
    text = f"axes: {{block: {block}, backbone: {{layer: {{{layer}}}}}, kernel_size: 7}}\nmetrics: params"
    with pytest.raises(SuiteError, match=says):
        plan(suite_of(text))


def test_a_kernel_that_only_the_stem_has_can_be_asked_for(suite_of):
    text = "axes: {block: conv, backbone: resnet18, where: {kernel_size: 7%s}}\nmetrics: params"
    assert plan(suite_of(text % ", stem: true")).cells
    with pytest.raises(SuiteError, match="beside its stem"):
        plan(suite_of(text % ""))


def test_tf32_is_for_cuda_only(suite_of):
    with pytest.raises(SuiteError, match="tf32"):
        plan(suite_of("axes: {block: conv, backbone: layer, dtype: tf32}\nmetrics: params"))


def test_defaults_depend_on_backbone_and_device(suite_of):
    planned = plan(suite_of("axes: {block: conv, backbone: [layer, resnet18], device: [cpu, cuda]}\nmetrics: params"))
    sizes = {(c.backbone.name, c.device.name): (c.batch_size, c.image_size, c.kernel_size) for c in planned.cells}
    assert sizes == {
        ("layer", "cpu"): (8, 56, 3),
        ("layer", "cuda"): (8, 56, 3),
        ("resnet18", "cpu"): (8, 96, None),
        ("resnet18", "cuda"): (64, 224, None),
    }


def test_rounds_visit_all_groups_and_rotate_who_starts(suite_of):
    planned = plan(suite_of(more="budget: {rounds: 3}"))
    visits = [task for task in planned.tasks if task.kind is TaskKind.VISIT]
    assert [task.round for task in visits] == [0, 0, 1, 1, 2, 2]
    assert [visits[i].cells[0].block.name for i in (0, 2, 4)] == ["conv", "repvgg", "orepa"]
    assert {len(task.cells) for task in visits} == {3}


def test_every_metric_is_owed_once_per_cell_and_round(suite_of):
    planned = plan(
        suite_of("axes: {block: [conv, acb], backbone: resnet18}\nmetrics: [params, macs, latency, accuracy]")
    )
    owed = [(task.kind, task.round, pair) for task in planned.tasks for pair in task.expects()]
    assert len(owed) == len(set(owed)) == 2 * (2 + 10 + 1)
    assert len({task.key for task in planned.tasks}) == len(planned.tasks)


def test_only_keeps_the_reference_for_ratios(suite_of):
    planned = plan(suite_of())
    orepa = next(cell for cell in planned.cells if cell.block.name == "orepa" and cell.kernel_size == 5)
    narrowed = planned.only(orepa.id[:6])
    assert labels(narrowed) == ["conv", "orepa"]
    assert {c.id for t in narrowed.tasks if t.kind is TaskKind.CELL for c in t.cells} == {orepa.id}
    assert all(len(t.cells) == 2 for t in narrowed.tasks if t.kind is TaskKind.VISIT)
    assert labels(planned.only("block == 'repvgg' and kernel_size == 3")) == ["conv", "repvgg"]
    with pytest.raises(HarnessError, match="picks none"):
        planned.only("kernel_size == 9")


def test_tasks_survive_json(suite_of):
    for task in plan(suite_of()).tasks:
        assert Task.from_json(task.to_json()) == task
        assert Task.from_json(task.to_json()).key == task.key


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("kernel_size * 2 == 6", 3),
        ("block in ['conv', 'orepa'] and not kernel_size == 5", 2),
        ("3 < kernel_size <= 5", 3),
        ("threads > 1", 0),
        ("block.scaling == 'none'", 0),
        ("kernel_size % 3 == 0", 3),
        ("True", 6),
    ],
)
def test_expressions_answer(suite_of, text, count):
    assert sum(map(Expression(text).holds, plan(suite_of()).cells)) == count


@pytest.mark.parametrize(
    "text", ["", "block.__class__()", "lambda: 0", "[c for c in block]", "f'{block}'", "x == 1", "a.b.c"]
)
def test_expressions_refuse_everything_else(text):
    with pytest.raises(HarnessError):
        Expression(text)


def test_comparing_a_name_with_a_number_is_one_clear_error(suite_of):
    cell = plan(suite_of()).cells[0]
    with pytest.raises(HarnessError, match="cannot be answered"):
        Expression("block > 3").holds(cell)


def test_parts_have_groups_and_references_of_their_own(suite_of):
    planned = plan(
        suite_of(
            """
            parts:
              training: {axes: {block: [conv, dbb], backbone: layer}, metrics: [train_step, params]}
              sizes:
                axes: {block: conv, backbone: layer, kernel_size: [1, 3]}
                compare: {axis: kernel_size, reference: 3}
                metrics: latency
            """
        )
    )
    assert [(g.axis, len(g.cells), g.cells[0].part) for g in planned.groups] == [
        ("block", 2, "training"),
        ("kernel_size", 2, "sizes"),
    ]
    assert len({cell.id for cell in planned.cells}) == 4, "the same point in two parts is two cells"
    assert {t.cells[0].part for t in planned.tasks if t.kind is TaskKind.CELL} == {"training"}
    assert labels(planned.only("part == 'sizes'"), "kernel_size") == [1, 3]


@pytest.mark.parametrize(
    ("backbone", "side", "says"),
    [
        ("vgg16", 31, "32 px or more"),
        ("coatnet_0_224", 96, "224 px only"),
        ("dla34", 100, "multiple of 32"),
    ],
)
def test_an_image_that_no_backbone_of_the_suite_can_take_is_refused(suite_of, backbone, side, says):
    text = f"axes: {{block: conv, backbone: {backbone}, image_size: {side}}}\nmetrics: params"
    with pytest.raises(SuiteError, match=says):
        plan(suite_of(text))


def test_an_image_that_one_of_several_backbones_cannot_take_leaves_that_cell_out(suite_of):
    text = "axes: {block: conv, backbone: [vgg16, resnet18], image_size: [16, 64]}\nmetrics: params"
    planned = plan(suite_of(text))
    assert [(cell.backbone.name, cell.image_size) for cell in planned.cells] == [
        ("vgg16", 64),
        ("resnet18", 16),
        ("resnet18", 64),
    ]
    assert "vgg16 needs images of 32 px or more, not 16" in planned.excluded[0].reason


def test_a_block_that_lacks_the_size_of_the_layers_is_refused(suite_of):
    with pytest.raises(SuiteError, match="orepa_1x1 has no kernel size 3"):
        plan(suite_of("axes: {block: orepa_1x1, backbone: resnet18}\nmetrics: params"))
    fits = "axes: {block: orepa_1x1, backbone: resnet50, where: {kernel_size: 1}}\nmetrics: params"
    assert len(plan(suite_of(fits)).cells) == 1


def test_checkpointing_is_an_axis_that_a_single_layer_cannot_have(suite_of):
    text = "axes: {block: conv, backbone: resnet18, checkpointing: [false, true]}\ncompare: {axis: checkpointing}\nmetrics: params"
    planned = plan(suite_of(text))
    assert [cell.checkpointing for cell in planned.cells] == [False, True]
    assert len({cell.id for cell in planned.cells}) == 2
    with pytest.raises(SuiteError, match="nothing to compute again"):
        plan(suite_of("axes: {block: conv, backbone: layer, checkpointing: true}\nmetrics: params"))
