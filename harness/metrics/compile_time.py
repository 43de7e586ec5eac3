"""Compile time: seconds that torch.compile takes before the first result, with nothing compiled left from before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from harness.devices import Clock
from harness.errors import Unsupported
from harness.measuring.calls import forward_pass, steady
from harness.measuring.metric import metric, one
from harness.measuring.subject import Subject
from harness.quantity import Quantity
from harness.records import Form, Json, Kind, Reading, TaskKind

OPTIONS: dict[str, Json] = {
    "backend": {
        "choices": ["inductor", "aot_eager", "eager"],
        "default": "inductor",
        "what": "who compiles: all of it, all but the kernels, or the capture of the graph alone",
    },
}

NO_COMPILER = ("InvalidCxxCompiler", "TritonMissing", "GPUTooOldForTriton")
"""What inductor raises, inside of other exceptions, where there is nothing to make kernels with."""


@metric(
    "compile_time",
    TaskKind.FIRST,
    Quantity(
        "compile_time",
        "s",
        Kind.SAMPLED,
        forms=("train", "fused"),
        what="seconds of torch.compile's first call beyond a steady one",
    ),
    options=OPTIONS,
)
def compile_time(subject: Subject, backend: str) -> Iterable[Reading]:
    """Seconds that the first call of torch.compile(model) takes beyond a steady call of the compiled model.

    Train form: one forward and backward in train mode; fused form: one forward for its output. Before each the same
    has run once uncompiled, so that what any first step costs (metric first_step) is not in it, and the caches of
    compiled code, in memory and on disk, are empty. What a process pays once for its compiler, whatever the model
    (imports, a trial of the C++ compiler, its headers), is paid by a small function first: fact `starting`.
    """
    clock = Clock(subject.device)
    starting = clock.time(lambda: _compile_small_function(subject, backend))
    for form in subject.forms:
        model = subject.model(form)
        _call(subject, form, model)()
        with _cold_caches(), _explained(backend):
            compiled_model: Any = torch.compile(model, backend=backend)  # a module again, whatever its type says
            compiled = _call(subject, form, compiled_model)
            subject.device.synchronize()
            first = clock.time(compiled)
            facts = {"first": first, **steady(clock, compiled)}
        beyond = first - facts["steady"]
        yield one("compile_time", form, "s", beyond, backend=backend, caches="cold", starting=starting, **facts)


def _call(subject: Subject, form: Form, model: nn.Module) -> Callable[[], object]:
    """What is compiled for: a forward and backward of the train form, a forward of the fused form."""
    x = subject.input()
    if form == "fused":
        return forward_pass(subject, model, x)
    target = subject.target()

    def forward_and_backward() -> None:
        model.zero_grad(set_to_none=True)
        with subject.autocast():
            loss = subject.loss(model(x), target)
        torch.autograd.backward(loss)

    return forward_and_backward


def _compile_small_function(subject: Subject, backend: str) -> None:
    """Forward and backward of a few element-wise operators, compiled as a model would be.

    Inductor keeps the C++ headers that it precompiles for all processes of a machine, out of its cache: a small
    function that needs them comes first, so that no model pays for them, whether they were there or not.
    """
    x = torch.ones(64, device=subject.device.torch_device, requires_grad=True)
    with _cold_caches(), _explained(backend):
        torch.compile(lambda value: (value * value).relu().sum(), backend=backend)(x).backward()


@contextmanager
def _cold_caches() -> Iterator[None]:
    """Nothing compiled in memory, and a folder of its own, empty and soon gone, for what is compiled on disk."""
    from torch._inductor.utils import fresh_cache  # late: the import belongs to what a compiler costs to begin

    torch.compiler.reset()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, fresh_cache(dir=folder):
        yield
    torch.compiler.reset()


@contextmanager
def _explained(backend: str) -> Iterator[None]:
    try:
        yield
    except Exception as problem:
        missing = next((link for link in _links(problem) if type(link).__name__ in NO_COMPILER), None)
        if missing is None:
            raise
        raise Unsupported(
            f"torch.compile finds no compiler for its kernels: {str(missing).splitlines()[0]}",
            remedy=f"install g++ or clang (on cuda: Triton), or use backend aot_eager instead of {backend}",
        ) from problem


def _links(problem: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it came from; torch keeps some of them in `inner_exception`."""
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        seen.add(id(problem))
        yield problem
        problem = getattr(problem, "inner_exception", None) or problem.__cause__ or problem.__context__
