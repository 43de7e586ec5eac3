"""A YAML file as plain values, with the place of each in the file. YAML is known only here.

PyYAML reads YAML 1.1, in which ``1e-3`` is a string, ``on`` is true and ``1:30`` is ninety: whoever writes
one of these into a benchmark means something else, so each is refused with what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.errors import SuiteError

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # 8x faster where libyaml is there
STRING, INT, FLOAT, BOOL, NULL = (f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))
PLAIN_TAGS = (STRING, INT, FLOAT, BOOL, NULL, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
DEEPEST = 40


class Source:
    """The text of a suite: its values, and where in the file each of them stands."""

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name
        self._root = self._compose()
        self.values: Any = self._value(self._root, 0)

    @classmethod
    def read(cls, path: Path) -> Source:
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except (FileNotFoundError, NotADirectoryError):
            near = sorted(str(p) for p in Path("suites").glob("**/*.yaml"))
            raise SuiteError(
                f"there is no file {str(path)!r}", remedy=f"name a suite{', as ' + ', '.join(near[:6]) if near else ''}"
            ) from None
        except (OSError, UnicodeDecodeError) as problem:
            raise SuiteError(f"{str(path)!r} cannot be read: {problem}", remedy="name a YAML file in UTF-8") from None

    def place(self, location: Sequence[str | int], key: bool = False) -> str:
        """``file:line:column`` of what stands at `location`; of the nearest thing above it when nothing does.

        With `key`, the place of the last key itself and not of its value.
        """
        node, mark = self._root, self._root.start_mark
        for i, step in enumerate(location):
            found = self._step(node, step)
            if found is None:
                continue  # pydantic names union members and validators here: no node, go on with the rest
            name, node = found
            mark = name.start_mark if name is not None and key and i == len(location) - 1 else node.start_mark
        return f"{self.name}:{mark.line + 1}:{mark.column + 1}"

    def fail(self, problem: str, remedy: str, location: Sequence[str | int] = (), key: bool = False) -> SuiteError:
        """An error that points into the file; raised by the caller."""
        return SuiteError(problem, remedy=remedy, where=self.place(location, key))

    @staticmethod
    def _step(node: Any, step: str | int) -> tuple[Any, Any] | None:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == str(step):
                    return name, value
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            return None, node.value[step]
        return None

    def _compose(self) -> Any:
        try:
            root = yaml.compose(self.text, Loader=Loader)
        except yaml.MarkedYAMLError as problem:
            mark = problem.problem_mark or problem.context_mark
            where = f"{self.name}:{mark.line + 1}:{mark.column + 1}" if mark else self.name
            raise SuiteError(
                f"this is not YAML: {problem.problem}", remedy="mend the line; indent with spaces", where=where
            ) from None
        except (yaml.YAMLError, RecursionError) as problem:
            raise SuiteError(
                f"this is not YAML: {problem}", remedy="write UTF-8 text with spaces", where=self.name
            ) from None
        if not isinstance(root, yaml.MappingNode):
            raise SuiteError("a suite is a mapping", remedy="start with 'axes:' and 'metrics:'", where=f"{self.name}:1")
        return root

    def _value(self, node: Any, depth: int) -> Any:
        # an alias that contains itself, or a billion laughs, ends here and not in a crash
        if depth > DEEPEST:
            raise self._at(node, "this is nested too deeply", "suites need a few levels; write aliases out")
        if node.tag not in PLAIN_TAGS:
            raise self._at(
                node, f"{self._text(node)!r} has a type that suites do not use ({_short(node.tag)})", "quote it"
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, depth + 1) for item in node.value]
        self._refuse_surprises(node)
        return _scalar(node)

    def _mapping(self, node: Any, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode) or name.tag != STRING:
                raise self._at(name, f"the key {self._text(name)!r} is not a word", "quote it")
            if name.value in values:
                raise self._at(name, f"the key {name.value!r} stands here a second time", "keep one of them")
            values[name.value] = self._value(value, depth + 1)
        return values

    def _refuse_surprises(self, node: Any) -> None:
        text = node.value
        if node.style:  # quoted: meant as it stands
            return
        if node.tag == BOOL and text.lower() not in ("true", "false"):
            raise self._at(node, f"YAML reads {text} as {_scalar(node)}", f"write true or false, or quote it: '{text}'")
        if node.tag in (INT, FLOAT) and ":" in text:
            raise self._at(node, f"YAML reads {text} as {_scalar(node)} (base 60)", f"quote it: '{text}'")
        if node.tag == INT and re.match(r"[-+]?0[0-7_]+$", text):
            raise self._at(node, f"YAML reads {text} as {_scalar(node)} (octal)", f"write {text.lstrip('0') or 0}")
        if node.tag == STRING and re.fullmatch(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+", text):
            number = float(text.replace("_", ""))
            raise self._at(node, f"YAML reads {text} as text, not as a number", f"write {_yaml_float(number)}")

    def _at(self, node: Any, problem: str, remedy: str) -> SuiteError:
        mark = node.start_mark
        return SuiteError(problem, remedy=remedy, where=f"{self.name}:{mark.line + 1}:{mark.column + 1}")

    @staticmethod
    def _text(node: Any) -> str:
        return str(node.value) if isinstance(node, yaml.ScalarNode) else "this"


def _scalar(node: Any) -> Any:
    return yaml.SafeLoader("").construct_object(node, deep=True)


def _short(tag: str) -> str:
    return tag.rsplit(":", 1)[-1]


def _yaml_float(number: float) -> str:
    """A spelling that YAML 1.1 reads as this number: it wants a point and a signed exponent."""
    text = repr(number)
    mantissa, _, exponent = text.partition("e")
    if not exponent:
        return text
    return f"{mantissa}{'' if '.' in mantissa else '.0'}e{exponent if exponent[0] in '+-' else '+' + exponent}"
