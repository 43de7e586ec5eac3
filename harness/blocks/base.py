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

The declaration itself, and what is checked of it, is in declared.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from harness.blocks.algebra import Kernel
from harness.blocks.declared import Choice, Declared, Option, Problem
from harness.errors import HarnessError, Unsupported
from harness.registry import Registry, unknown


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


class Block(Declared, nn.Module):
    """A drop-in for a convolution *and* its batch norm: own normalisation, no activation.

    x (N, c_in, H, W) -> (N, c_out, ceil(H / stride), ceil(W / stride)). A subclass sets the class attributes, takes
    its options as keyword arguments (module docstring) and calls `super().__init__(spec, **options)` first, which
    raises Unsupported for a kernel size or an option's value that the block does not do.
    """

    def __init__(self, spec: ConvSpec, **options: Choice) -> None:
        super().__init__()
        self._check(spec, options)
        self.spec = spec

    @classmethod
    def problems(cls) -> Iterator[Problem]:
        yield from super().problems()
        if cls.forward is nn.Module.forward:
            yield "it computes nothing", "write def forward(self, x_NCHW: Tensor) -> Tensor"

    @classmethod
    def _check(cls, spec: ConvSpec, options: Mapping[str, Choice]) -> None:
        name, declared = name_of(cls), cls.options()
        cls._check_place(name, spec)
        cls._check_handed_over(name, declared, options)
        for key, value in options.items():
            option = declared[key]
            if not option.allows(value):
                remedy = f"use {' or '.join(map(str, option.choices))}"
                if key == "reparam" and cls.sister:
                    remedy += f"; block {cls.sister} has the {value} evaluation"
                raise Unsupported(f"block {name} has no {key} {value!r}", remedy=remedy)
        if cls.at_least_one and not any(options[key] for key in cls.at_least_one):
            problem = f"block {name} has nothing left with {', '.join(cls.at_least_one)} all False"
            raise Unsupported(problem, remedy="leave at least one of them True")

    @classmethod
    def _check_handed_over(cls, name: str, declared: Mapping[str, Option], options: Mapping[str, Choice]) -> None:
        """An option that does not reach the base class would never be checked."""
        if differing := sorted(declared.keys() ^ options.keys()):
            problem = f"block {name}: its constructor and super().__init__ differ in {', '.join(differing)}"
            remedy = f"hand over each option: super().__init__(spec, {', '.join(f'{key}={key}' for key in declared)})"
            raise HarnessError(problem, remedy=remedy, where=cls.file())

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

    @classmethod
    def fusable(cls) -> bool:
        return True

    @classmethod
    def problems(cls) -> Iterator[Problem]:
        yield from super().problems()
        if cls.kernel is FusableBlock.kernel and cls.fused is FusableBlock.fused:
            yield "it is fusable and says no kernel", "write def kernel(self) -> Kernel, or derive it from Block"

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


class _Blocks(Registry[type[Block]]):
    """Takes a block whose declaration is whole, and no two of a name."""

    def register(self, name: str) -> Callable[[type[Block]], type[Block]]:
        add = super().register(name)

        def check_and_add(block: type[Block]) -> type[Block]:
            if name in self:
                problem = f"another block is called {name}, in {self[name].file()}"
                raise HarnessError(problem, remedy=f"register {block.__name__} as another name", where=block.file())
            block.check_declaration(name)
            return add(block)

        return check_and_add


BLOCKS = _Blocks("block")


def name_of(block: type[Block]) -> str:
    """The name a block is registered under, or its class's name."""
    return next((name for name in BLOCKS if BLOCKS[name] is block), block.__name__)


def check_options(name: str, options: Mapping[str, object]) -> None:
    """Raise UnknownName for an option that the block does not have; values are the constructor's to check."""
    known = BLOCKS[name].options()
    for option in options:
        if option not in known:
            raise unknown(f"option of block {name}", option, known)


def declaration(name: str) -> dict[str, Any]:
    """What there is to know about a block without building it, as plain JSON.

    Raises UnknownName, and HarnessError for a sister that cannot be one.
    """
    block = BLOCKS[name]
    _check_sister(name, block)
    return {"name": name, **block.to_json()}


def _check_sister(name: str, block: type[Block]) -> None:
    if block.sister is not None and (block.sister not in BLOCKS or "online" not in BLOCKS[block.sister].evaluations()):
        problem = f"block {name}: its sister {block.sister} is no block with an online evaluation"
        raise HarnessError(problem, remedy=f"name another in class {block.__name__}, as orepa", where=block.file())
