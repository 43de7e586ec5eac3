"""Which convolution runs when, and which batch norm alone takes its output: found by running the model once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.errors import HarnessError
from harness.memory import meta_copy
from harness.models.nets.backbones import input_shape
from harness.models.signs import Signs

OTHER_RANKS = {nn.Conv1d, nn.Conv3d}

NORMS = (nn.BatchNorm2d, BatchNormAct2d)
"""Norms whose arithmetic is known; a subclass may do something else."""


@dataclass
class ConvUse:
    """What one run showed about a convolution. `norm` is the batch norm that follows it and serves it alone.

    non_negative: what it reads cannot be negative, as far as that shows (signs.py).
    whole_map: a single window as large as the map: a linear layer written as a convolution.
    """

    name: str
    runs: int = 0
    reads_input: bool = False
    non_negative: bool = True
    whole_map: bool = True
    norm: str | None = None


@dataclass
class Trace:
    """The convolutions of a model by name, in the order in which they ran; those that never ran come last."""

    convs: dict[str, ConvUse]

    @property
    def stem(self) -> frozenset[str]:
        """The first convolution that ran, and all that read the model's input itself."""
        ran = [use.name for use in self.convs.values() if use.runs]
        return frozenset(ran[:1]) | {use.name for use in self.convs.values() if use.reads_input}


def trace(model: nn.Module, *, training: bool) -> Trace:
    """Run a copy of `model` once, without storage where possible, and see who reads whose output.

    training: run as in training (dropout between convolution and norm is seen) or as in evaluation.
    Raises HarnessError when the model runs neither on meta nor on a small image.
    """
    try:
        return _run(meta_copy(model), training)
    except Exception:  # whatever a model's forward does with values that meta tensors do not have
        pass
    try:
        with torch.random.fork_rng(devices=[]):
            return _run(_real_copy(model), training)
    except Exception as failure:
        kinds = {type(module) for module in model.modules()}
        if kinds & OTHER_RANKS and nn.Conv2d not in kinds:
            raise HarnessError(
                f"{type(model).__name__} does not take images as (N, C, H, W): {failure}",
                remedy="use a network of two-dimensional convolutions",
            ) from failure
        raise HarnessError(
            f"the model could not be run once to see its layers: {failure}",
            remedy="check that model(images) works in its own default image size",
        ) from failure


def _real_copy(model: nn.Module) -> nn.Module:
    bare = meta_copy(model).to_empty(device="cpu")
    for tensor in (*bare.parameters(), *bare.buffers()):
        if tensor.is_floating_point():
            tensor.detach().fill_(0.1)  # values do not matter, but uninitialised ones may be NaN and loop for ever
        else:
            tensor.zero_()
    return bare


def _run(model: nn.Module, training: bool) -> Trace:
    model.float().train(training)  # float32: a tensor that a module keeps beside its parameters stayed as it was
    watch = _Watch(model)
    # two images: batch norm refuses to train on a single value per channel
    x_NCHW = torch.zeros(input_shape(model, batch=2), dtype=torch.float32, device=next(model.parameters()).device)
    with ExitStack() as stack:
        for handle in watch.handles:
            stack.callback(handle.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(watch)
        watch.begin(x_NCHW)
        watch.finish(model(x_NCHW))
    return watch.result()


@dataclass
class _Output:
    """A convolution's output and every place that reads it: a batch norm's name, or None for anything else."""

    tensor: Tensor  # held, so that its identity stays its own
    conv: str
    consumers: set[str | None] = field(default_factory=set)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operator's arguments, and through hooks which convolution or batch norm is running."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: dict[str, ConvUse] = {}
        self.never: dict[str, ConvUse] = {}
        self.handles: list[Any] = []
        self._outputs: dict[int, _Output] = {}
        self._signs = Signs()
        self._input: Tensor | None = None
        self._inside: list[str] = []
        self._norm_runs: dict[str, int] = {}
        self._norm_input: dict[str, int] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                self.never[name] = ConvUse(name)
                self.handles.append(module.register_forward_hook(self._conv_ran(name)))
            elif type(module) in NORMS:
                self.handles.append(module.register_forward_pre_hook(self._norm_begins(name)))
                self.handles.append(module.register_forward_hook(self._norm_ended))

    def begin(self, x_NCHW: Tensor) -> None:
        self._input = x_NCHW

    def finish(self, result: Any) -> None:
        """What the model returns is taken by its caller."""
        for leaf in tree_leaves(result):
            self._consume(leaf, None)

    def result(self) -> Trace:
        for output in self._outputs.values():
            (consumer,) = output.consumers if len(output.consumers) == 1 else (None,)
            alone = (
                consumer is not None
                and self._norm_runs[consumer] == 1
                and self._norm_input[consumer] == id(output.tensor)
            )
            if alone and self.uses[output.conv].runs == 1:
                self.uses[output.conv].norm = consumer
        return Trace({**self.uses, **self.never})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for leaf in tree_leaves((args, kwargs)):
            self._consume(leaf, self._inside[-1] if self._inside else None)
        result = func(*args, **kwargs)
        self._signs.ran(func, args, kwargs, result)
        return result

    def _consume(self, leaf: Any, consumer: str | None) -> None:
        output = self._outputs.get(id(leaf))
        if output is not None and output.tensor is leaf:
            output.consumers.add(consumer)

    def _conv_ran(self, name: str) -> Any:
        def hook(module: nn.Conv2d, args: tuple[Any, ...], output: Tensor) -> None:
            use = self.uses.setdefault(name, self.never.pop(name, ConvUse(name)))
            use.runs += 1
            use.reads_input |= bool(args) and args[0] is self._input
            use.non_negative &= bool(args) and self._signs.cannot_be_negative(args[0])
            use.whole_map &= bool(args) and 1 < args[0].shape[-1] == module.kernel_size[1] and output.shape[-1] == 1
            self._outputs[id(output)] = _Output(output, name)

        return hook

    def _norm_begins(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._inside.append(name)
            self._norm_runs[name] = self._norm_runs.get(name, 0) + 1
            self._norm_input[name] = id(args[0]) if args else 0

        return hook

    def _norm_ended(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._inside.pop()
