"""Training steps tried in fresh processes that are held to an amount of memory."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from harness.measuring.subject import Subject
from harness.measuring.training_step import Training
from harness.records import Cell, Json

STEPS = 2
"""The second has gradients and optimizer state from the first."""

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")
"""What torch's allocators write, where they do not raise OutOfMemoryError."""


def fits_for_real(subject: Subject, batch: int, memory: int, tries: dict[int, str]) -> bool:
    """Whether a real training step with `batch` images fits `memory` bytes beside a fresh process's own.

    What became of it is written into `tries`. Raises RuntimeError when it failed for another reason than memory.
    """
    # spawn: a fork of a process whose threads have run is not safe, and CUDA refuses to work in one
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    order = replace(subject.cell, batch_size=batch).to_json()
    process = context.Process(target=_try, args=(order, subject.seed, memory, sender))
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:  # killed before it could answer: the system's own answer to too much memory
        answer = "killed"
    finally:
        process.join()
        receiver.close()
    if answer.startswith("error"):
        raise RuntimeError(f"batch {batch}: {answer}")
    tries[batch] = answer
    return bool(answer == "fits")


def _try(order: Json, seed: int, memory: int, answer: Connection) -> None:
    try:
        subject = Subject(Cell.from_json(order), seed)
        with subject.settings():
            subject.device.limit_memory(memory)
            step = Training.of(subject)
            for _ in range(STEPS):
                step()
            subject.device.synchronize()
        answer.send("fits")
    except Exception as problem:  # the parent decides what it means
        answer.send("out of memory" if is_out_of_memory(problem) else f"error: {type(problem).__name__}: {problem}")


def is_out_of_memory(problem: Exception) -> bool:
    """Whether an exception says that there was not enough memory."""
    text = str(problem).lower()
    return isinstance(problem, MemoryError | torch.OutOfMemoryError) or any(sign in text for sign in OUT_OF_MEMORY)
