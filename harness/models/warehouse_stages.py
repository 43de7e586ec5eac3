"""The stages of a network, found by running it once: which convolutions would share a warehouse.

The level of a convolution is how often the map has been halved behind it; the levels of all that can take part, in
order, are the stages 0, 1, 2, ... . At the start of a stage some layers still work on the channels of the stage before
and are handed to it (not from the first stage, which has none before it):

* Where strided convolutions lower the resolution: those that read what the first convolution of their unit reads,
  itself included. The unit is the largest module that goes from the one resolution to the other. So of a ResNet's
  stage these are a basic block's first convolution and the shortcut, but not a bottleneck's 3x3 in the middle.
* Where something else does (a pooling): the first convolution that runs behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import log2
from typing import Any

from torch import Tensor, nn

from harness.memory import meta_copy
from harness.models.layers import configured, within
from harness.models.nets.backbones import input_shape
from harness.models.tracing import trace


@dataclass(frozen=True)
class Stages:
    """of: the stage of each convolution that has one, in the order in which they run. stays: why others have none.

    apart: those that are "stem" or "classifier".
    """

    of: Mapping[str, int]
    apart: Mapping[str, str]
    stays: Mapping[str, str]


@dataclass(frozen=True)
class _Run:
    """One run of a module: the map it read, and the levels of that map and of the one it returned."""

    read: Tensor
    levels: tuple[int, int]
    pixels: int

    @property
    def lowers(self) -> bool:
        return self.levels[0] < self.levels[1]


def find_stages(model: nn.Module) -> Stages:
    """Raises HarnessError when the model cannot be run once to see its layers."""
    _, _, height, width = input_shape(model)
    watched = meta_copy(model)
    runs: dict[str, _Run] = {}
    for name, module in watched.named_modules():
        module.register_forward_hook(_watch(name, height * width, runs))
    seen = trace(watched, training=True)
    stem: frozenset[str] = frozenset(getattr(model, "stem_names", seen.stem | configured(model, "first_conv")))
    classifier = configured(model, "classifier")
    apart, stays = {}, {}
    for name, use in seen.convs.items():
        if use.runs != 1 or name not in runs:
            stays[name] = f"runs {use.runs} times in one forward pass" if use.runs else "does not run as a module"
        elif runs[name].pixels == 1:
            stays[name] = "gives a single pixel: a linear layer, or part of an attention"
        elif name in stem:
            apart[name] = "stem"
        elif any(within(name, each) for each in classifier):
            apart[name] = "classifier"
    level = {name: runs[name].levels[1] for name in seen.convs if name not in {**apart, **stays}}
    order = sorted(set(level.values()))
    stage = {name: order.index(each) for name, each in level.items()}
    starts = _stage_starts(stage, runs)
    return Stages({name: each - (name in starts) for name, each in stage.items()}, apart, stays)


def _watch(name: str, image: int, runs: dict[str, _Run]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = args[0] if args else None
        if isinstance(x, Tensor) and isinstance(output, Tensor) and x.ndim == output.ndim == 4:
            before, after = (each.shape[2] * each.shape[3] for each in (x, output))
            # halvings of the side, rounded: a convolution without padding takes a few pixels and is no new level
            runs[name] = _Run(x, (round(log2(image / before) / 2), round(log2(image / after) / 2)), after)

    return hook


def _stage_starts(stage: Mapping[str, int], runs: Mapping[str, _Run]) -> set[str]:
    """The convolutions of every stage but the first that are handed to the stage before."""
    starts = set()
    for number in range(1, max(stage.values(), default=0) + 1):
        names = [name for name in stage if stage[name] == number]
        strided = [name for name in names if runs[name].lowers]
        starts |= {name for name in strided if _reads_like_first(name, runs, stage)} if strided else {names[0]}
    return starts


def _reads_like_first(name: str, runs: Mapping[str, _Run], convs: Iterable[str]) -> bool:
    """Whether it reads what the first convolution of its unit reads."""
    unit = ancestor = name
    while "." in ancestor:
        ancestor = ancestor.rpartition(".")[0]
        if ancestor in runs:  # a mere list of modules does not run
            if runs[ancestor].levels != runs[name].levels:
                break
            unit = ancestor
    first = next(conv for conv in convs if within(conv, unit))
    return runs[first].read is runs[name].read
