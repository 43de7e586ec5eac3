"""What can go wrong in a way the user can put right. Bugs stay ordinary exceptions, traceback and all."""

from __future__ import annotations


class HarnessError(Exception):
    """A problem in one sentence and what to do about it.

    `where` is a place in the user's input (``suites/gpu.yaml:12:7``), printed in front when known.
    """

    def __init__(self, problem: str, *, remedy: str, where: str | None = None) -> None:
        super().__init__(problem, remedy, where)
        self.problem = problem
        self.remedy = remedy
        self.where = where

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.problem}\n  try: {self.remedy}"


class UnknownName(HarnessError):
    """A block, metric, backbone, axis, ... that does not exist; the remedy names the nearest that do."""


class Unsupported(HarnessError):
    """A combination that a block, metric or device cannot do: refused, never computed wrongly."""


class SuiteError(HarnessError):
    """Something in a suite file that cannot be meant."""
