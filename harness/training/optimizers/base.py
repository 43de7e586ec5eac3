"""What an optimizer is to a suite: options declared once, the torch optimizer made of them, what it adds to the loss.

An optimizer is one file of this folder, a frozen dataclass whose fields are its options:

    @OPTIMIZERS.register("sgd")
    @dataclass(frozen=True, kw_only=True)
    class SGD(OptimizerFactory):
        \"\"\"What `harness list` and the catalog say of it.\"\"\"

        lr: Annotated[float, "what it is"] = 0.1

        def create(self, model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD(model.parameters(), lr=self.lr, foreach=self.foreach, fused=self.fused)

The declaration that planning reads from the catalog is read off these fields, so the two cannot part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from harness.records import Json
from harness.registry import Registry

Implementation = Literal["single", "foreach", "fused"]

TYPES = {float: "number", int: "integer", bool: "boolean", str: "text"}


@dataclass(frozen=True, kw_only=True)
class OptimizerFactory(ABC):
    """An optimizer with its options chosen. A field whose default is None follows from something else."""

    implementation: Annotated[Implementation | None, "how a step is computed; by default as torch would there"] = None

    @classmethod
    def check(cls, written: Mapping[str, Json]) -> None:
        """Raise Unsupported for options that do not go together; `written` are those that a suite writes itself."""
        return

    @abstractmethod
    def create(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of `model`'s parameters. Raises Unsupported where the model has nothing an option is for."""

    def regularized(self, loss: Tensor, model: nn.Module) -> Tensor:
        """What a training step minimises, a scalar: the loss, and what the options want added to it."""
        return loss

    @property
    def foreach(self) -> bool:
        """`implementation` as torch's own optimizers take it, this and `fused`."""
        return self.implementation == "foreach"

    @property
    def fused(self) -> bool:
        return self.implementation == "fused"


OPTIMIZERS: Registry[type[OptimizerFactory]] = Registry("optimizer")


def choose(name: str, written: Mapping[str, Json], implementation: str) -> OptimizerFactory:
    """The optimizer called `name` with the options of a suite; `implementation` is what its device would choose.

    Raises UnknownName for a name that does not exist, Unsupported for options that do not go together.
    """
    factory = OPTIMIZERS[name]
    factory.check(written)
    options = dict(written)
    if options.get("implementation") is None:
        known = implementations(factory)
        options["implementation"] = implementation if implementation in known else known[0]
    return factory(**options)


def implementations(factory: type[OptimizerFactory]) -> list[str]:
    """What `implementation` may be; an optimizer that has fewer than torch's three declares the field again."""
    return list(options_of(factory)["implementation"]["choices"])


def options_of(factory: type[OptimizerFactory]) -> dict[str, Json]:
    """Option -> type or choices, default, what it is; read off the fields. Raises TypeError where a part is missing."""
    hints = get_type_hints(factory, include_extras=True)
    found = {}
    for option in fields(factory):
        if get_origin(hints[option.name]) is not Annotated or not isinstance(option.default, (*TYPES, NoneType)):
            example = f'{option.name}: Annotated[float, "what it is"] = 0.1'
            raise TypeError(f"{factory.__name__}.{option.name} needs a type, a text and a default, as in {example}")
        kind, what = get_args(hints[option.name])
        found[option.name] = {**_values(kind), "default": option.default, "what": what}
    return found


def _values(kind: Any) -> dict[str, Json]:
    """float and ``float | None`` are numbers, a Literal is a choice."""
    union = () if get_origin(kind) is Literal else get_args(kind)
    (one,) = [part for part in union or (kind,) if part is not NoneType]
    return {"choices": list(get_args(one))} if get_origin(one) is Literal else {"type": TYPES[one]}


def declaration(name: str) -> dict[str, Json]:
    """What planning must know of an optimizer without torch, as plain JSON. Raises UnknownName."""
    factory = OPTIMIZERS[name]
    what = (factory.__doc__ or "").strip()
    if not what or what.startswith(f"{factory.__name__}("):  # which dataclasses write by themselves
        raise TypeError(f"optimizer {name} does not say what it is: write a line of documentation into its class")
    return {"what": what.splitlines()[0], "options": options_of(factory)}
