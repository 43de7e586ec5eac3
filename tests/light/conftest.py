"""Suites written in a test's own words."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

import pytest

from harness.suite import Suite, parse_suite
from harness.suite.source import Source

SMALL = """
axes: {block: [conv, repvgg, orepa], backbone: layer, kernel_size: [3, 5]}
metrics: [params, train_step]
"""


@pytest.fixture(scope="session")
def suite_of() -> Callable[..., Suite]:
    """A checked suite from YAML text, or from the small one and some lines more."""

    def make(text: str = "", more: str = "", overrides: tuple[str, ...] = ()) -> Suite:
        return parse_suite(Source((dedent(text) or SMALL) + dedent(more), "test.yaml"), "test", overrides)

    return make
