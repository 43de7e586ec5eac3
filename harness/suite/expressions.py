"""The small language of `exclude`, `include` and `--only`: comparisons of axes, joined by and, or, not.

    block == "dbb" and kernel_size > 5
    backbone in ["resnet18", "resnet50"] and block.reparam == "online"

An axis that holds variants compares by name; ``axis.option`` is an option's value, None where it is not
set. Nothing is evaluated that is not on the list below, so an expression cannot do anything but answer.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from harness.errors import HarnessError
from harness.records import AXES, Cell, Variant
from harness.registry import unknown

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
}
EXAMPLE = 'write something like: block == "dbb" and kernel_size > 5'


class Expression:
    """A checked expression; `holds(cell)` answers it."""

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
            _check(self._tree)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise HarnessError(f"{text!r} is not an expression", remedy=EXAMPLE) from None

    def texts(self) -> list[str]:
        """The quoted words in it."""
        return [n.value for n in ast.walk(self._tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]

    def holds(self, cell: Cell) -> bool:
        """Whether it is true of `cell`. HarnessError when it compares what cannot be compared."""
        try:
            return bool(_evaluate(self._tree, cell))
        except (TypeError, ZeroDivisionError) as problem:
            raise HarnessError(
                f"{self.text!r} cannot be answered for {cell.block.label} on {cell.backbone.label}: {problem}",
                remedy="compare numbers with numbers and names with quoted names",
            ) from None


def _check(node: ast.AST) -> None:
    match node:
        case ast.Name(id=name):
            if name not in AXES:
                raise _unknown_axis(name)
        case ast.Attribute(value=ast.Name(id=name)):
            if name not in AXES:
                raise unknown("axis", name, AXES)
        case ast.Constant(value=str() | int() | float() | bool() | None):
            pass
        case ast.BoolOp(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
            for part in parts:
                _check(part)
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=inner):
            _check(inner)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            _check(left)
            _check(right)
        case ast.Compare(left=left, comparators=others):
            for part in (left, *others):
                _check(part)
        case _:
            raise HarnessError(
                f"expressions know comparisons, and, or, not, in and lists, not {ast.unparse(node)!r}", remedy=EXAMPLE
            )


def _unknown_axis(name: str) -> HarnessError:
    error = unknown("axis", name, AXES)
    return HarnessError(error.problem, remedy=f'{error.remedy}; a value needs quotes: "{name}"')


def _evaluate(node: ast.AST, cell: Cell) -> Any:
    match node:
        case ast.Name(id=name):
            value = getattr(cell, name)
            return value.name if isinstance(value, Variant) else value
        case ast.Attribute(value=ast.Name(id=name), attr=option):
            value = getattr(cell, name)
            return value.options.get(option) if isinstance(value, Variant) else None
        case ast.Constant(value=value):
            return value
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_evaluate(part, cell) for part in parts]
        case ast.BoolOp(op=op, values=parts):
            answers = (bool(_evaluate(part, cell)) for part in parts)
            return all(answers) if isinstance(op, ast.And) else any(answers)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not _evaluate(inner, cell)
        case ast.UnaryOp(operand=inner):
            return -_evaluate(inner, cell)
        case ast.BinOp(left=left, op=op, right=right):
            return ARITHMETIC[type(op)](_evaluate(left, cell), _evaluate(right, cell))
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _compare(_evaluate(left, cell), ops, [_evaluate(other, cell) for other in others])
    raise AssertionError(f"unchecked node {node!r}")


def _compare(left: Any, ops: list[ast.cmpop], others: list[Any]) -> bool:
    for op, right in zip(ops, others, strict=True):
        ordered = isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE)
        if ordered and (left is None or right is None):
            return False  # an unset size is neither larger nor smaller than anything
        if not COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True
