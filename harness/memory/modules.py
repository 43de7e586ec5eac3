"""Which module is running: the innermost one by its name in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


@contextmanager
def running_module(model: nn.Module) -> Iterator[Callable[[], str]]:
    """A function that names the innermost module of `model` whose forward is running, "" outside of all of them.

    What a checkpoint computes again in backward runs inside its modules too; the backward of an operator does not.
    """
    names = {id(module): name for name, module in model.named_modules()}
    stack: list[str] = []

    def begins(module: nn.Module, args: Any) -> None:
        # a module that a forward makes for itself is a part of what is running
        stack.append(names.get(id(module), stack[-1] if stack else ""))

    def ends(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    handles = [
        register_module_forward_pre_hook(begins),
        register_module_forward_hook(ends, always_call=True),  # a checkpoint leaves its modules by raising
    ]
    try:
        yield lambda: stack[-1] if stack else ""
    finally:
        for handle in handles:
            handle.remove()
