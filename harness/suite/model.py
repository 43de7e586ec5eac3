"""What a user may write: the shape of a suite, checked before anything is measured.

This module knows the keys and their types; source.py turns a file into values with places, names.py checks
what the axes hold against the catalog, and `harness.suite.load_suite` puts them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PrivateAttr, WithJsonSchema

from harness.catalog.vocabulary import DTYPES
from harness.errors import SuiteError
from harness.records import Budget, Form, Variant
from harness.suite.source import Source
from harness.units import BYTES, as_bytes, as_seconds

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
WHOLE = "whole"
"""The name of the only part of a suite that is written without parts."""

TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
COUNTS = {"1": 1.0, "k": 1e3, "M": 1e6, "Mi": 2.0**20, "G": 1e9, "T": 1e12}
PUBLISHED_UNITS: dict[str, tuple[tuple[str, ...], float]] = {
    **{name: (("B",), float(size)) for name, size in BYTES.items()},
    **{name: (("s",), size) for name, size in TIMES.items()},
    **{name: (("1", "MAC"), size) for name, size in COUNTS.items()},
    "%": (("fraction",), 0.01),
}
"""Unit of a published number -> the quantities' units that it can stand for, and how much of one it is.

GB is 1e9 bytes and GiB 2**30; M and G count parameters as well as multiply-accumulates, Mi is 2**20 of them.
"""


def _as_list(value: Any) -> Any:
    """One value stands for a list of one."""
    return value if isinstance(value, list) else [value]


def _as_variant(value: Any) -> Variant:
    if isinstance(value, Variant):
        return value
    if isinstance(value, str):
        return Variant(value)
    if isinstance(value, dict) and len(value) == 1:
        ((name, options),) = value.items()
        if isinstance(name, str) and (options is None or isinstance(options, dict)):
            return Variant(name, options or {})
    raise ValueError(f"{value!r} is neither a name nor a name with options, as in {{orepa: {{scaling: scalar}}}}")


def _as_where(value: Any) -> Variant:
    """A preset by name, one kernel size, or a mapping of conditions."""
    if isinstance(value, Variant):
        return value
    if isinstance(value, str):
        return Variant(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Variant("where", {"kernel_size": value})
    if isinstance(value, dict):
        return Variant("where", value)
    raise ValueError(f"{value!r} is no preset's name, kernel size or mapping of conditions")


def _variant_schema(what: str) -> WithJsonSchema:
    options = {"type": "object", "maxProperties": 1, "minProperties": 1}
    return WithJsonSchema({"anyOf": [{"type": "string"}, options], "description": what})


ToJson = PlainSerializer(lambda variant: variant.to_json())
VariantValue = Annotated[Variant, BeforeValidator(_as_variant), ToJson, _variant_schema("a name, or {name: options}")]
WhereValue = Annotated[
    Variant,
    BeforeValidator(_as_where),
    ToJson,
    WithJsonSchema({"type": ["string", "integer", "object"], "description": "a preset, a kernel size, or conditions"}),
]
Whole = Annotated[int, Field(strict=True, ge=1)]
Texts = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]
Variants = Annotated[list[VariantValue], BeforeValidator(_as_list), Field(min_length=1)]
Wheres = Annotated[list[WhereValue], BeforeValidator(_as_list), Field(min_length=1)]
Truths = Annotated[list[Annotated[bool, Field(strict=True)]], BeforeValidator(_as_list), Field(min_length=1)]
Wholes = Annotated[list[Whole], BeforeValidator(_as_list), Field(min_length=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Axes(Strict):
    """The matrix. Every axis takes one value or a list; block and backbone must be named."""

    block: Variants = Field(description="what is put into the backbone, as in [conv, {orepa: {scaling: scalar}}]")
    backbone: Variants = Field(description="layer, plain_a0/a1/b0, or any timm CNN by name")
    kernel_size: Wholes | None = Field(None, description="odd, 1 to 13; left out: as the backbone has it (layer: 3)")
    device: Variants = Field(default=[Variant("cpu")], description="cpu, cuda, cuda:1, xpu, mps")
    dtype: Texts = Field(default=["float32"], description=", ".join(DTYPES))
    memory_format: Texts = Field(default=["contiguous"], description="contiguous, channels_last")
    batch_size: Wholes | None = Field(None, description="1 or more; left out: 8 on cpu and for layer, else 64")
    image_size: Wholes | None = Field(None, description="pixels, 1 or more; left out: 96 on cpu, layer 56, else 224")
    optimizer: Variants = Field(default=[Variant("sgd")], description="sgd, adamw; options lr, momentum, ...")
    where: Wheres = Field(default=[Variant("default")], description="which layers are replaced")
    dataset: Variants = Field(default=[Variant("mnist")], description="what accuracy trains on")
    threads: Wholes | None = Field(None, description="CPU threads; left out: torch's own choice")
    checkpointing: Truths = Field(default=[False], description="true: compute activations again in backward")


class Rule(Strict):
    """An expression over the axes, and the reason the plan prints."""

    when: str = Field(description='as in: block == "dbb" and kernel_size > 5')
    because: str = ""


def _as_rule(value: Any) -> Any:
    return {"when": value} if isinstance(value, str) else value


Rules = Annotated[
    list[Annotated[Rule, BeforeValidator(_as_rule)]],
    BeforeValidator(_as_list),
    WithJsonSchema({"type": ["string", "object", "array"], "items": {"type": ["string", "object"]}}),
]


class Compare(Strict):
    """The axis whose values stand side by side in a group, and the value the others are held against."""

    axis: str = "block"
    reference: VariantValue | int | None = Field(None, description="default: conv, or else the axis's first value")


class BudgetSpec(Strict):
    """How much to measure, and when to give up on a task."""

    rounds: Whole = Field(10, description="fresh processes per group, at most; a verdict needs 4")
    seconds: Annotated[float, Field(gt=0, le=3600)] = Field(1.0, description="per variant, timed metric and round")
    warmup: Whole = Field(2, description="steps discarded before a variant's first samples of a round")
    seeds: Whole = Field(1, description="trainings per cell, for accuracy")
    timeout: Annotated[float, BeforeValidator(as_seconds), Field(gt=0)] = Field(600.0, description="per task: 30s, 10m")
    memory: Annotated[int, BeforeValidator(as_bytes), Field(gt=0)] | None = Field(
        None, description="per task, as 4GiB; default 80 % of the machine's"
    )
    precision: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.01, description="a group is done when every compared ratio's interval is narrower; null: after all rounds"
    )
    group_time: Annotated[float, BeforeValidator(as_seconds), Field(gt=0)] | None = Field(
        None, description="of a group's measuring, as 5m: no further round begins after it (4 are always done)"
    )

    def for_workers(self) -> Budget:
        return Budget(**self.model_dump())


class Gate(Strict):
    """How `check` judges one quantity; what is left out keeps its default."""

    gate: bool = Field(True, description="false: reported, but fails nothing")
    threshold: Annotated[float, Field(ge=0)] | None = Field(None, description="relative, 0.03 is 3 %")
    floor: Annotated[float, Field(ge=0)] | None = Field(None, description="absolute, in the quantity's SI unit")
    limit: Annotated[float, Field(ge=0)] | None = Field(None, description="for bounded and close quantities")
    side_by_side: Annotated[float, Field(ge=0)] | None = Field(
        None, description="the relative threshold of ab, whose revisions take turns; 0.03 when left out"
    )


def _as_unit(value: Any) -> Any:
    """A bare 1 is the unit of plain counts, not a number."""
    return "1" if value == 1 and type(value) is int else value


class Published(Strict):
    """Numbers from a paper, each beside the cell of this suite that measures the same thing."""

    title: Annotated[str, Field(min_length=1)] = Field(description="of the table in the report")
    metric: str = Field(description="a quantity that this suite's metrics read, as train_memory")
    form: Form = Field("train", description="train, or fused")
    unit: Annotated[str, BeforeValidator(_as_unit)] = Field(
        description=f"of the published numbers: {', '.join(PUBLISHED_UNITS)}; GB is 1e9 bytes, GiB 2**30"
    )
    saved_from: VariantValue | int | None = Field(
        None, description="the variant of each group whose extra over the reference is what the others save from"
    )
    reduction: Annotated[bool, Field(strict=True)] = Field(
        False, description="true: the numbers are by how many % a cell has less than its group's reference"
    )
    figures: dict[str, str] = Field(
        min_length=1,
        description='a published id and the one cell it speaks of, as in OREPA-T4-005: block == "dbb" and '
        'backbone == "resnet18"; part is an axis too',
    )
    note: str = Field("", description="what else there is to say, printed under the table")

    @property
    def factor(self) -> float:
        """How much of the quantity's SI unit one published unit is."""
        return PUBLISHED_UNITS[self.unit][1]

    @property
    def yardstick(self) -> str | None:
        """`saved_from` as the label of a value of the compared axis."""
        chosen = self.saved_from
        return chosen.label if isinstance(chosen, Variant) else None if chosen is None else str(chosen)


class Part(Strict):
    """One matrix: what spans it, what falls out, what stands side by side, what is measured."""

    axes: Axes
    zip: list[Annotated[list[str], Field(min_length=2)]] = Field(default=[], description="axes that go together")
    exclude: Rules = []
    include: Rules = Field(default=[], description="keep only cells for which one of these holds")
    compare: Compare = Compare()
    metrics: Variants = Field(description="as in [params, latency, {accuracy: {epochs: 3}}]")


class Suite(Strict):
    """A benchmark: one matrix, or several named parts, measured with one budget and held to one set of gates."""

    name: Annotated[str, Field(pattern=NAME, description="default: the file's name")]
    description: str = ""
    parts: dict[Annotated[str, Field(pattern=NAME)], Part] = Field(min_length=1)
    budget: BudgetSpec = BudgetSpec()
    gates: dict[str, Gate] = {}
    published: list[Published] = Field(default=[], description="what a paper printed, beside what this suite finds")
    _source: Source | None = PrivateAttr(default=None)

    def read_from(self, source: Source) -> Self:
        """Remember the file, so that what is found wrong later can still be pointed at."""
        self._source = source
        return self

    def fail(self, problem: str, remedy: str, location: Iterable[str | int], key: bool = False) -> SuiteError:
        """An error about what stands at `location`, with its place in the file where there is one."""
        if self._source is None:
            return SuiteError(f"suite {self.name}: {problem}", remedy=remedy)
        return self._source.fail(problem, remedy, as_written(location), key)


def as_written(location: Iterable[str | int]) -> tuple[str | int, ...]:
    """Where a thing stands in the file: the only part of a suite without parts is the suite itself."""
    steps = tuple(location)
    return steps[2:] if steps[:2] == ("parts", WHOLE) else steps
