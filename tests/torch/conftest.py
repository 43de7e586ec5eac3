"""Fixtures for tests that need torch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import cache
from typing import TypeVar

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from harness.models import describe
from harness.records import Json

M = TypeVar("M", bound=nn.Module)


@pytest.fixture(autouse=True, scope="session")
def _imports_set_aside() -> None:
    """Whatever is imported lives to the end: a collection before every count need not walk through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tensors are small here: a second thread gains little, and waits for the first where a neighbour is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test draws the same numbers whatever ran before it, and leaves the stream as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def described() -> Callable[[str], dict[str, Json]]:
    """`describe`, each backbone once: finding the images that it takes runs it a dozen times."""
    return cache(describe)


@pytest.fixture
def lived_in() -> Callable[[M], M]:
    """Makes a fresh module look trained, in place.

    A fresh batch norm is nearly the identity and a branch that starts at zero is not there: both hide mistakes.
    """

    def live(module: M) -> M:
        for norm in module.modules():
            if isinstance(norm, BatchNorm):
                nn.init.normal_(norm.running_mean)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)  # weights, scales, gammas and betas alike
        return module

    return live
