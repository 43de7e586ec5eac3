"""What a block is: where it stands in a network (`ConvSpec`), what it declares, and how it becomes one convolution.

A block's options are the keyword arguments of its constructor. The declaration is read off that signature, and the
constructor checks its arguments against the declaration, so the two cannot part:

    def __init__(
        self,
        spec: ConvSpec,
        *,
        scaling: Annotated[Literal["vector", "none"], "what it is"] = "vector",
        origin: Annotated[bool, "what it is"] = True,
    ) -> None:
        super().__init__(spec, scaling=scaling, origin=origin)
"""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.func import functional_call

from harness.blocks.algebra import Kernel
from harness.errors import Unsupported
from harness.registry import Registry, unknown

KERNEL_SIZES = tuple(range(1, 14, 2))
"""Odd, so that a small kernel has a centre to sit on; larger ones only where a block's own limits say so."""

Choice = str | bool | int

NON_NEGATIVE = "non-negative input"

OUTSIDE = "own"
"""The family of a block that is in none of the families' folders."""


@dataclass(frozen=True)
class ConvSpec:
    """The convolution that a block stands for: no bias, zeros around the map; sizes in pixels and channels.

    margin: zeros on each side beyond "same" padding, dilation * (kernel_size // 2); negative where there are fewer.

    Raises Unsupported for what no convolution can be; what a block cannot do is the block's own limit.
    """

    c_in: int
    c_out: int
    kernel_size: int = 3
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    margin: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "margin" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise Unsupported(f"{field.name} is {value!r}", remedy=f"use a whole number {field.name} >= 1")
        for name in ("c_in", "c_out"):
            if getattr(self, name) % self.groups:
                raise Unsupported(
                    f"{name} = {getattr(self, name)} is not a multiple of groups = {self.groups}",
                    remedy="use groups that divide both c_in and c_out",
                )

    @property
    def padding(self) -> int:
        """Zeros on each side; without a margin the map keeps its size at stride 1."""
        return self.dilation * (self.kernel_size // 2) + self.margin

    @property
    def keeps_shape(self) -> bool:
        """Whether output and input are alike (but for a margin), so that an identity branch makes sense."""
        return self.c_in == self.c_out and self.stride == 1

    @property
    def depthwise(self) -> bool:
        """One filter per channel; more outputs than inputs (a channel multiplier) is not depthwise here."""
        return self.groups == self.c_in == self.c_out

    def padded(self, padding: int) -> ConvSpec:
        """The same place with so many zeros on each side."""
        if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
            raise Unsupported(f"padding is {padding!r}", remedy="use a whole number padding >= 0")
        return replace(self, margin=padding - self.dilation * (self.kernel_size // 2))

    def resized(self, kernel_size: int) -> ConvSpec:
        """The same place with another kernel size, so the same margin. A 1x1 has nothing to dilate."""
        return replace(self, kernel_size=kernel_size, dilation=1 if kernel_size == 1 else self.dilation)


@dataclass(frozen=True)
class Option:
    """A choice that a block leaves open, and the one its paper made: between words or numbers, or True and False."""

    choices: tuple[Choice, ...]
    default: Choice
    what: str

    def allows(self, value: object) -> bool:
        """Whether the value is one of the choices. 1 == True in Python; an option does not take one for the other."""
        return any(type(value) is type(choice) and value == choice for choice in self.choices)


class Block(nn.Module):
    """A drop-in for a convolution *and* its batch norm: own normalisation, no activation.

    x (N, c_in, H, W) -> (N, c_out, ceil(H / stride), ceil(W / stride)). A subclass sets the class attributes, takes
    its options as keyword arguments (module docstring) and calls `super().__init__(spec, **options)` first, which
    raises Unsupported for a kernel size or an option's value that the block does not do.
    """

    family: ClassVar[str]
    """What the folder of its file says: `FAMILY` of the package."""
    paper: ClassVar[str]
    sister: ClassVar[str | None] = None
    """The block to use where this one has no online evaluation."""
    kernel_sizes: ClassVar[tuple[int, ...]] = KERNEL_SIZES
    strides: ClassVar[tuple[int, ...] | None] = None
    """None, here and for dilations: any."""
    dilations: ClassVar[tuple[int, ...] | None] = None
    groups: ClassVar[Literal["any", "dense", "depthwise"]] = "any"
    """Any that divide the channels, 1, or one for each channel with c_in == c_out."""
    same_channels: ClassVar[bool] = False
    """Whether c_in == c_out is needed."""
    channel_multiple: ClassVar[int] = 1
    """What c_in and c_out must be multiples of in each of the place's groups, with the options' defaults."""
    training_rules: ClassVar[tuple[str, ...]] = ()
    """What its paper does in a training beside steps: names of harness.training.rules."""
    needs: str | None = None
    """What the fused form asks of the input beside its shape: `NON_NEGATIVE`, or nothing."""
    at_least_one: ClassVar[tuple[str, ...]] = ()
    """Options, True or False, of which one must be True."""

    def __init_subclass__(cls, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        folder = sys.modules.get(cls.__module__.rpartition(".")[0])
        cls.family = getattr(folder, "FAMILY", OUTSIDE)

    def __init__(self, spec: ConvSpec, **options: Choice) -> None:
        super().__init__()
        self._check(spec, options)
        self.spec = spec

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """What the constructor takes beside the spec, read off its signature."""
        return _options(cls)

    @classmethod
    def fusable(cls) -> bool:
        return issubclass(cls, FusableBlock)

    @classmethod
    def _check(cls, spec: ConvSpec, options: Mapping[str, Choice]) -> None:
        name = name_of(cls)
        cls._check_place(name, spec)
        for key, value in options.items():
            option = cls.options()[key]
            if not option.allows(value):
                remedy = f"use {' or '.join(map(str, option.choices))}"
                if key == "reparam" and cls.sister:
                    remedy += f"; block {cls.sister} has the {value} evaluation"
                raise Unsupported(f"block {name} has no {key} {value!r}", remedy=remedy)
        if cls.at_least_one and not any(options[key] for key in cls.at_least_one):
            problem = f"block {name} has nothing left with {', '.join(cls.at_least_one)} all False"
            raise Unsupported(problem, remedy="leave at least one of them True")

    @classmethod
    def _check_place(cls, name: str, spec: ConvSpec) -> None:
        """Hold the spec against the declared limits."""
        limits = {"kernel size": cls.kernel_sizes, "stride": cls.strides, "dilation": cls.dilations}
        values = (spec.kernel_size, spec.stride, spec.dilation)
        for (what, allowed), value in zip(limits.items(), values, strict=True):
            if allowed is not None and value not in allowed:
                remedy = f"use {'one of ' if len(allowed) > 1 else ''}{', '.join(map(str, allowed))}"
                raise Unsupported(f"block {name} has no {what} {value}", remedy=remedy)
        if cls.groups == "dense" and spec.groups != 1:
            raise Unsupported(f"block {name} has no groups, {spec.groups} were asked for", remedy="use groups 1")
        if cls.groups == "depthwise" and not spec.depthwise:
            problem = f"block {name} is depthwise: groups {spec.groups} of {spec.c_in} -> {spec.c_out} channels is not"
            raise Unsupported(problem, remedy="use groups == c_in == c_out (in a suite: where: {depthwise: true})")
        if cls.same_channels and spec.c_in != spec.c_out:
            problem = f"block {name} keeps the number of channels, not {spec.c_in} -> {spec.c_out}"
            raise Unsupported(problem, remedy="use c_out == c_in")

    def _refuse_remainder(self, divisor: int, why: str) -> None:
        """Raise Unsupported unless `divisor` divides c_in and c_out. Not among the declared limits: options decide."""
        for name in ("c_in", "c_out"):
            if getattr(self.spec, name) % divisor:
                problem = f"{name} = {getattr(self.spec, name)} is not a multiple of {divisor}, {why}"
                raise Unsupported(f"block {name_of(type(self))}: {problem}", remedy=f"use multiples of {divisor}")

    def extra_repr(self) -> str:
        return ", ".join(f"{field.name}={getattr(self.spec, field.name)}" for field in fields(self.spec))


class FusableBlock(Block):
    """A block that is one convolution, and `after` behind it, once its batch norms use running statistics."""

    after: nn.Module
    """What follows the sum and is no convolution (an attention, a shuffle of channels); nothing in most blocks."""

    def __init__(self, spec: ConvSpec, **options: Choice) -> None:
        super().__init__(spec, **options)
        self.after = nn.Identity()

    @property
    def deployed(self) -> ConvSpec:
        """The convolution that it becomes, where that is not the one it stands for: with groups, dilated, ..."""
        return self.spec

    @property
    def window(self) -> ConvSpec:
        """What one output of the fused form sees of the input: the rim is where this reaches into the padding."""
        return self.deployed

    def kernel(self) -> Kernel:
        """The folded kernel (c_out, c_in / groups, k, k) of `deployed` and bias (c_out,), by running statistics.

        Differentiable.
        """
        raise NotImplementedError

    def fused(self) -> nn.Conv2d | nn.Sequential:
        """What this block computes in eval mode, as a new convolution (and `after`); the block is left as it is.

        Running statistics are used in training mode too: a convolution has no batch to take statistics from, so the
        result equals `block.eval()(x)`, not the training forward. Folded in float64 on the CPU (on meta: there), cast
        last to the block's device and dtype; parameters require gradients whatever the block's do; contiguous.
        """
        with torch.inference_mode(False), torch.no_grad():  # a parameter made in inference mode could not be trained
            of = next(self.parameters())
            tensors = [*self.named_parameters(prefix="block"), *self.named_buffers(prefix="block")]
            exact = {name: _exact(tensor) for name, tensor in tensors}
            folded: Kernel = functional_call(_Folding(self), exact, ())
            weight, bias = (tensor.to(of.device, of.dtype).contiguous() for tensor in folded)
            # On meta for its shapes only: an initialisation would draw from the random stream.
            s = self.deployed
            fused = nn.Conv2d(s.c_in, s.c_out, s.kernel_size, s.stride, s.padding, s.dilation, s.groups, device="meta")
            fused.weight, fused.bias = nn.Parameter(weight), nn.Parameter(bias)
            if isinstance(self.after, nn.Identity):
                return fused.train(self.training)
            # tensor by tensor: a fake one, copied as any object is, would copy its mode with it
            dense = torch.contiguous_format
            memo: dict[int, Any] = {id(b): b.detach().clone(memory_format=dense) for b in self.after.buffers()}
            memo |= {id(p): nn.Parameter(p.detach().clone(memory_format=dense)) for p in self.after.parameters()}
            after = deepcopy(self.after, memo).requires_grad_(True)
        return nn.Sequential(OrderedDict(conv=fused, after=after)).train(self.training)


class _Folding(nn.Module):
    """Makes `kernel` the forward, which is what `functional_call` runs on other tensors."""

    def __init__(self, block: FusableBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self) -> Kernel:
        return self.block.kernel()


def _exact(tensor: Tensor) -> Tensor:
    """In float64, where that exists: on the CPU (mps has none); a meta tensor stays, it has nothing to move."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().to("meta" if tensor.is_meta else "cpu", torch.float64)


BLOCKS: Registry[type[Block]] = Registry("block")


def name_of(block: type[Block]) -> str:
    """The name a block is registered under, or its class's name."""
    return next((name for name in BLOCKS if BLOCKS[name] is block), block.__name__)


def _options(block: type[Block]) -> Mapping[str, Option]:
    hints = get_type_hints(block.__init__, include_extras=True)
    options = {}
    for parameter in inspect.signature(block.__init__).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            kind, what = get_args(hints[parameter.name])
            choices = (True, False) if kind is bool else get_args(kind)
            options[parameter.name] = Option(choices, parameter.default, what)
    return options


def check_options(name: str, options: Mapping[str, object]) -> None:
    """Raise UnknownName for an option that the block does not have; values are the constructor's to check."""
    known = BLOCKS[name].options()
    for option in options:
        if option not in known:
            raise unknown(f"option of block {name}", option, known)


def declaration(name: str) -> dict[str, Any]:
    """What there is to know about a block without building it, as plain JSON. Raises UnknownName."""
    block = BLOCKS[name]
    options = block.options()
    return {
        "name": name,
        "family": block.family,
        "paper": block.paper,
        "fusable": block.fusable(),
        "evaluations": list(options["reparam"].choices) if "reparam" in options else [],
        "options": {
            key: {"choices": list(option.choices), "default": option.default, "what": option.what}
            for key, option in options.items()
        },
        "limits": {
            "kernel_size": list(block.kernel_sizes),
            "stride": list(block.strides) if block.strides else "any",
            "groups": block.groups,
            "dilation": list(block.dilations) if block.dilations else "any",
            "same_channels": block.same_channels,
            "channel_multiple": block.channel_multiple,
            "needs": block.needs,
            "at_least_one": list(block.at_least_one),
        },
        "sister": block.sister,
    }
