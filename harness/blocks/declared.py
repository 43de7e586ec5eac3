"""What a block says of itself without being built: its options, limits and needs, and whether all of it is there.

The declaration is read off the class: class attributes, and the keyword arguments of the constructor as options. It is
checked when the class is registered, so that whoever adds a block is told at once what is missing, where, and what to
write. Planning reads it from catalog/index.json (``python -m harness.indexing``).
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from torch import nn

from harness.errors import HarnessError

KERNEL_SIZES = tuple(range(1, 14, 2))
"""Odd, so that a small kernel has a centre to sit on; larger ones only where a block's own limits say so."""

NON_NEGATIVE = "non-negative input"

OUTSIDE = "own"
"""The family of a block that is in none of the families' folders."""

Choice = str | bool | int

Groups = Literal["any", "dense", "depthwise"]

Problem = tuple[str, str]
"""What is wrong with a declaration, and what to write."""

NAME = re.compile("[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Option:
    """A choice that a block leaves open, and the one its paper made: between words or numbers, or True and False."""

    choices: tuple[Choice, ...]
    default: Choice
    what: str

    def allows(self, value: object) -> bool:
        """Whether the value is one of the choices. 1 == True in Python; an option does not take one for the other."""
        return any(type(value) is type(choice) and value == choice for choice in self.choices)


class Declared:
    """What a block declares: its class attributes and options. `Block` adds the module.

    A subclass sets `paper` at least, and whatever differs from what stands here.
    """

    family: ClassVar[str]
    """What the folder of its file says: `FAMILY` of the package."""
    paper: ClassVar[str]
    sister: ClassVar[str | None] = None
    """The block to use where this one has no online evaluation."""
    no_sister: ClassVar[str | None] = None
    """Why there is no block to evaluate online in its place, where it has only the offline evaluation."""
    kernel_sizes: ClassVar[tuple[int, ...]] = KERNEL_SIZES
    strides: ClassVar[tuple[int, ...] | None] = None
    """None, here and for dilations: any."""
    dilations: ClassVar[tuple[int, ...] | None] = None
    groups: ClassVar[Groups] = "any"
    """Any that divide the channels, 1, or one for each channel with c_in == c_out."""
    same_channels: ClassVar[bool] = False
    """Whether c_in == c_out is needed."""
    channel_multiple: ClassVar[int] = 1
    """What c_in and c_out must be multiples of in each of the place's groups, with the options' defaults."""
    training_rules: ClassVar[tuple[str, ...]] = ()
    """What its paper does in a training beside steps: names of harness.training.rules."""
    needs: str | None = None
    """What the fused form asks of the input beside its shape: `NON_NEGATIVE`, or nothing."""
    without_needs: ClassVar[tuple[str, Choice] | None] = None
    """The option, and its value, with which it needs nothing of the input."""
    at_least_one: ClassVar[tuple[str, ...]] = ()
    """Options, True or False, of which one must be True."""
    shared_state: ClassVar[str | None] = None
    """What its layers share in a network, which is then swapped as a whole: a name of harness.models.swap."""
    keeps_kernel_sizes: ClassVar[bool] = False
    """Whether in a network every layer keeps its kernel size, whatever the axis kernel_size says."""
    linear_form: ClassVar[type[nn.Module] | None] = None
    """What its paper puts in the place of the linear classifier: a module made of (in_features, out_features)."""

    def __init_subclass__(cls, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        folder = sys.modules.get(cls.__module__.rpartition(".")[0])
        cls.family = getattr(folder, "FAMILY", OUTSIDE)

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """What the constructor takes beside the spec, read off its signature."""
        return {name: read_option(hint, default) for name, (hint, default) in _keywords(cls).items()}

    @classmethod
    def fusable(cls) -> bool:
        return False

    @classmethod
    def evaluations(cls) -> tuple[Choice, ...]:
        """Offline, online or both; empty for a block that has no branches to evaluate."""
        options = cls.options()
        return options["reparam"].choices if "reparam" in options else ()

    @classmethod
    def to_json(cls) -> dict[str, Any]:
        """All of it, as catalog/index.json has it."""
        return {
            "family": cls.family,
            "paper": cls.paper,
            "fusable": cls.fusable(),
            "evaluations": list(cls.evaluations()),
            "options": {
                key: {"choices": list(option.choices), "default": option.default, "what": option.what}
                for key, option in cls.options().items()
            },
            "limits": cls._limits(),
            "sister": cls.sister,
            "no_sister": cls.no_sister,
            "network": cls._network(),
        }

    @classmethod
    def _limits(cls) -> dict[str, Any]:
        return {
            "kernel_size": list(cls.kernel_sizes),
            "stride": list(cls.strides) if cls.strides else "any",
            "groups": cls.groups,
            "dilation": list(cls.dilations) if cls.dilations else "any",
            "same_channels": cls.same_channels,
            "channel_multiple": cls.channel_multiple,
            "needs": cls.needs,
            "at_least_one": list(cls.at_least_one),
        }

    @classmethod
    def _network(cls) -> dict[str, Any]:
        """What is asked of it when it is put into a network; `own_layers` is block native's alone."""
        return {
            "own_layers": False,
            "keeps_kernel_sizes": cls.keeps_kernel_sizes,
            "shared_state": cls.shared_state,
            "linear_form": cls.linear_form is not None,
        }

    @classmethod
    def file(cls) -> str:
        """The file of the class, as a module's path: ``harness/blocks/reparam/dbb.py``."""
        return cls.__module__.replace(".", "/") + ".py"

    @classmethod
    def check_declaration(cls, name: str) -> None:
        """Raise HarnessError that names all that is missing or contradictory, in which file, and what to write."""
        problems = list(cls.problems())
        if not NAME.fullmatch(name):
            problems.append((f"{name!r} is no name that a suite can write", "register a name such as wide_branches"))
        if problems:
            remedy = f"in class {cls.__name__}: {'; '.join(remedy for _, remedy in problems)}"
            raise HarnessError(f"block {name}: {'; '.join(p for p, _ in problems)}", remedy=remedy, where=cls.file())

    @classmethod
    def problems(cls) -> Iterator[Problem]:
        """What is missing or contradictory; a mechanism's base class adds what its blocks must define."""
        if not isinstance(getattr(cls, "paper", None), str) or not cls.paper.strip():
            yield "it names no paper", 'write paper = "Author et al., Title, venue year, arXiv:0000.00000, section 3"'
        wrong = list(_option_problems(cls))
        yield from wrong
        if not wrong:  # what follows reads the options
            yield from _sister_problems(cls)
            yield from _choice_problems(cls)
        yield from _limit_problems(cls)


def _keywords(block: type[Declared]) -> dict[str, tuple[Any, Any]]:
    """The constructor's keyword-only arguments: annotation and default."""
    hints = get_type_hints(block.__init__, include_extras=True)
    parameters = inspect.signature(block.__init__).parameters.values()
    return {p.name: (hints.get(p.name), p.default) for p in parameters if p.kind is p.KEYWORD_ONLY}


def read_option(hint: Any, default: Any) -> Option:
    """The option that a keyword argument is. Raises ValueError that says what is wrong with its annotation."""
    if get_origin(hint) is not Annotated:
        raise ValueError("has no text that says what it is")
    kind, *notes = get_args(hint)
    if not notes or not isinstance(notes[0], str) or not notes[0].strip():
        raise ValueError("has no text that says what it is")
    if kind is not bool and get_origin(kind) is not Literal:
        raise ValueError(f"takes any {getattr(kind, '__name__', kind)}, not one of a list")
    option = Option((True, False) if kind is bool else get_args(kind), default, notes[0])
    if default is inspect.Parameter.empty:
        raise ValueError("has no default")
    if not option.allows(default):
        raise ValueError(f"has the default {default!r}, which is not among its choices")
    return option


def _option_problems(block: type[Declared]) -> Iterator[Problem]:
    parameters = list(inspect.signature(block.__init__).parameters.values())[1:]  # behind self
    if not parameters or parameters[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        yield (
            "its constructor takes no spec",
            "write def __init__(self, spec: ConvSpec, *, ...)",
        )
    for parameter in parameters[1:]:
        name = parameter.name
        if parameter.kind is parameter.VAR_KEYWORD:
            yield f"its constructor takes any **{name}", "name each option, or take the spec alone"
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            yield f"its option {name} can be given by position", "write *, behind spec: ConvSpec"
    for name, (hint, default) in _keywords(block).items():
        try:
            read_option(hint, default)
        except ValueError as wrong:
            example = 'Annotated[Literal["one", "other"], "what it is"] = "one"'
            yield f"its option {name} {wrong}", f"write {name}: {example}, or Annotated[bool, ...] = True"


def _sister_problems(block: type[Declared]) -> Iterator[Problem]:
    alone = block.evaluations() == ("offline",)
    if alone and block.sister is None and block.no_sister is None:
        yield (
            "it has the offline evaluation alone and names no sister, the block to evaluate online in its place",
            'write sister = "orepa" (or another block that has both), or no_sister = "why there can be none"',
        )
    if block.sister is not None and block.no_sister is not None:
        yield "it has a sister and says why it has none", "keep sister or no_sister"
    if not alone and (block.sister or block.no_sister):
        yield "it needs no sister: it has more than the offline evaluation", "drop sister and no_sister"


def _choice_problems(block: type[Declared]) -> Iterator[Problem]:
    """Attributes that name options."""
    options = block.options()
    for name in block.at_least_one:
        if name not in options or options[name].choices != (True, False):
            yield f"at_least_one names {name}, which is no option that is True or False", f"drop {name} there"
    if block.without_needs is not None:
        name, value = block.without_needs
        if name not in options or not options[name].allows(value):
            yield f"without_needs is {name}: {value}, which is no choice of its options", "name one that is"


def _limit_problems(block: type[Declared]) -> Iterator[Problem]:
    """Whole numbers in tuples: `strides = 1` would refuse every stride with an error of Python's."""
    for name, at_least in (("kernel_sizes", 1), ("strides", 0), ("dilations", 0)):
        value = getattr(block, name)
        if at_least == 0 and value is None:
            continue
        if not isinstance(value, tuple) or not value or not all(type(each) is int and each > 0 for each in value):
            yield f"{name} is {value!r}, not a tuple of whole numbers", f"write {name} = (1,), or (1, 3, 5)"
    if block.groups not in get_args(Groups):
        yield f"groups is {block.groups!r}", 'write groups = "any", "dense" or "depthwise"'
