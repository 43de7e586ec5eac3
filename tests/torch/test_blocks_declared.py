"""What somebody who adds a block gets wrong is one error, at once: what is missing, in which file, and what to write."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Literal

import pytest
from torch import Tensor, nn

import harness
from harness import blocks
from harness.blocks import BLOCKS, Block, ConvSpec, FusableBlock, Kernel
from harness.blocks.base import declaration
from harness.blocks.parts.per_sample import PerSampleBlock
from harness.errors import HarnessError, UnknownName, Unsupported
from harness.models import native, swap

OFFLINE = Annotated[Literal["offline"], "branches on features"]


class Whole(FusableBlock):
    """Nothing is missing here; what follows changes one thing each."""

    paper = "Someone, A block, 2026"
    sister = "orepa"

    def __init__(self, spec: ConvSpec, *, reparam: OFFLINE = "offline") -> None:
        super().__init__(spec, reparam=reparam)
        self.conv = nn.Conv2d(spec.c_in, spec.c_out, 1, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.conv(x_NCHW)
        return y_NCHW

    def kernel(self) -> Kernel:
        return Kernel(self.conv.weight, self.conv.weight.new_zeros(self.spec.c_out))


class WithoutPaper(FusableBlock):
    sister = "orepa"
    __init__, forward, kernel = Whole.__init__, Whole.forward, Whole.kernel


class WithoutSister(Whole):
    sister = None


class WithSisterAndReason(Whole):
    no_sister = "it has none"


class WithNeedlessSister(Whole):
    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec)


class WithoutText(Whole):
    def __init__(self, spec: ConvSpec, *, wide: bool = True) -> None:
        super().__init__(spec)


class WithoutAnnotation(Whole):
    def __init__(self, spec: ConvSpec, *, wide=True) -> None:
        super().__init__(spec)


class WithEmptyText(Whole):
    def __init__(self, spec: ConvSpec, *, wide: Annotated[bool, ""] = True) -> None:
        super().__init__(spec)


class WithoutChoices(Whole):
    def __init__(self, spec: ConvSpec, *, width: Annotated[int, "how wide"] = 4) -> None:
        super().__init__(spec)


class WithForeignDefault(Whole):
    def __init__(self, spec: ConvSpec, *, width: Annotated[Literal[2, 4], "how wide"] = 3) -> None:
        super().__init__(spec)


class WithoutDefault(Whole):
    def __init__(self, spec: ConvSpec, *, width: Annotated[Literal[2, 4], "how wide"]) -> None:
        super().__init__(spec)


class WithoutSpec(Whole):
    def __init__(self, *, reparam: OFFLINE = "offline") -> None:
        super().__init__(ConvSpec(4, 4), reparam=reparam)


class WithPositionalOption(Whole):
    def __init__(self, spec: ConvSpec, width: Annotated[Literal[2, 4], "how wide"] = 2) -> None:
        super().__init__(spec)


class WithAnyOption(Whole):
    def __init__(self, spec: ConvSpec, **options: bool) -> None:
        super().__init__(spec)


class WithoutKernel(FusableBlock):
    paper, sister = Whole.paper, "orepa"
    __init__, forward = Whole.__init__, Whole.forward


class WithoutForward(Block):
    paper, sister = Whole.paper, "orepa"
    __init__ = Whole.__init__


class WithoutConvolved(PerSampleBlock):
    paper = Whole.paper


class WithBareStride(Whole):
    strides = 1


class WithBareSizes(Whole):
    kernel_sizes = 3


class WithOtherGroups(Whole):
    groups = "depth-wise"


class WithUnknownComponent(Whole):
    at_least_one = ("origin",)


class WithUnknownWayOut(Whole):
    without_needs = "carry", "prelu"


MISTAKES = [
    (WithoutPaper, "it names no paper", 'write paper = "'),
    (WithoutSister, "names no sister, the block to evaluate online in its place", "no_sister = "),
    (WithSisterAndReason, "has a sister and says why it has none", "keep sister or no_sister"),
    (WithNeedlessSister, "needs no sister", "drop sister"),
    (WithoutText, "option wide has no text", "wide: Annotated"),
    (WithoutAnnotation, "option wide has no text", "Annotated["),
    (WithEmptyText, "option wide has no text", "Annotated["),
    (WithoutChoices, "option width takes any int, not one of a list", "Literal["),
    (WithForeignDefault, "option width has the default 3, which is not among its choices", "Literal["),
    (WithoutDefault, "option width has no default", "="),
    (WithoutSpec, "constructor takes no spec", "spec: ConvSpec"),
    (WithPositionalOption, "option width can be given by position", "write *,"),
    (WithAnyOption, "takes any **options", "name each option"),
    (WithoutKernel, "is fusable and says no kernel", "def kernel(self) -> Kernel"),
    (WithoutForward, "computes nothing", "def forward("),
    (WithoutConvolved, "convolves nothing", "def convolved("),
    (WithBareStride, "strides is 1, not a tuple", "strides = (1,)"),
    (WithBareSizes, "kernel_sizes is 3, not a tuple", "kernel_sizes = (1,)"),
    (WithOtherGroups, "groups is 'depth-wise'", '"depthwise"'),
    (WithUnknownComponent, "at_least_one names origin", "drop origin"),
    (WithUnknownWayOut, "without_needs is carry: prelu", "name one that is"),
]


@pytest.mark.parametrize(("block", "problem", "remedy"), MISTAKES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_mistake_in_a_declaration_is_told_when_the_block_is_registered(block, problem, remedy):
    with pytest.raises(HarnessError) as refused:
        BLOCKS.register("added")(block)
    assert problem in refused.value.problem
    assert refused.value.problem.startswith("block added: ")
    assert remedy in refused.value.remedy
    assert block.__name__ in refused.value.remedy
    assert str(refused.value.where).endswith("test_blocks_declared.py")
    assert "added" not in BLOCKS


def test_all_that_is_wrong_is_told_at_once():
    class Wrong(WithBareStride):
        paper = " "
        sister = None

    with pytest.raises(HarnessError, match=r"no paper.*no sister.*strides") as refused:
        BLOCKS.register("Added")(Wrong)
    assert "'Added' is no name" in refused.value.problem


def test_a_whole_declaration_is_taken_and_a_name_only_once(monkeypatch):
    monkeypatch.setattr(BLOCKS, "_items", dict(BLOCKS._items))
    assert BLOCKS.register("added")(Whole) is Whole
    assert blocks.declaration("added")["family"] == "own"
    with pytest.raises(HarnessError, match=r"another block is called dbb, in harness/blocks/reparam/dbb\.py"):
        BLOCKS.register("dbb")(Whole)


def test_a_sister_must_have_the_online_evaluation(monkeypatch):
    monkeypatch.setattr(BLOCKS, "_items", dict(BLOCKS._items))
    for sister in ("nothing_like_it", "dbb"):
        BLOCKS.register(f"of_{sister}")(type("Sisterly", (Whole,), {"sister": sister}))
        with pytest.raises(HarnessError, match=f"its sister {sister} is no block with an online evaluation"):
            declaration(f"of_{sister}")


def test_an_option_that_does_not_reach_the_base_class_is_told():
    class Forgetful(Whole):
        def __init__(
            self, spec: ConvSpec, *, reparam: OFFLINE = "offline", wide: Annotated[bool, "wide"] = True
        ) -> None:
            super().__init__(spec, reparam=reparam)

    with pytest.raises(HarnessError, match="differ in wide") as refused:
        Forgetful(ConvSpec(4, 4))
    assert "super().__init__(spec, reparam=reparam, wide=wide)" in refused.value.remedy


def comparisons(source: str) -> list[str]:
    """Comparisons of a name, or of a block, with the name of one that exists."""
    found = []
    for node in ast.walk(ast.parse(source)):
        texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
        if isinstance(node, ast.Compare) and {*BLOCKS, native.NAME} & {text for text in texts if isinstance(text, str)}:
            found.append(ast.unparse(node))
    return [text for text in found if "name" in text or "block" in text]


def test_no_mechanism_asks_for_a_block_by_name():
    assert comparisons("if cell.block.name == 'kw' or block in ('dcd', other): pass") == [
        "cell.block.name == 'kw'",
        "block in ('dcd', other)",
    ]
    folder = Path(harness.__file__).parent
    asked = {path.relative_to(folder).as_posix(): comparisons(path.read_text()) for path in folder.rglob("*.py")}
    assert not {path: found for path, found in asked.items() if found}


def test_what_a_block_declares_for_networks_is_what_swap_does(monkeypatch):
    monkeypatch.setattr(BLOCKS, "_items", dict(BLOCKS._items))

    class Keeping(Whole):
        keeps_kernel_sizes = True

    class Sharing(Whole):
        shared_state = "warehouse"

    BLOCKS.register("keeping")(Keeping)
    BLOCKS.register("sharing")(Sharing)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1))
    with pytest.raises(Unsupported, match="in a network block keeping keeps the kernel sizes"):
        swap(model, "keeping", kernel_size=5)
    assert [change.changed for change in swap(model, "keeping").swap_report] == [False, True]
    with pytest.raises(UnknownName, match="warehouses"):
        swap(model, "sharing")
