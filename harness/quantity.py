"""What a metric declares of each quantity it reads: unit, kind, limits, and its place and words in the report.

Everything is plain data, so that planning, verdicts and reports know it from the catalog, without torch. A recorded run
may have quantities that no metric reads any more; they are printed last, without words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal, Self

from harness.records import Form, Json, Kind

LAST = 1000
"""The rank of what has none: behind everything that has, in alphabetical order."""


class Theme(StrEnum):
    """The question that a quantity answers: one table of the report each, in this order."""

    TRAIN = "train"
    RUN = "run"
    EXACT = "exact"


class Wording(StrEnum):
    """How a sentence tells what a variant has of a quantity, in the order of its parts; {} is from `Phrase`.

    TIME: "{verb} 1.52x [1.44, 1.57] slower than conv", "is not distinguishable from conv in {noun} (...)".
    BYTES: "adds 3.2 MiB to {noun}", "adds nothing to {noun}".
    ERROR: "{verb} to 3e-08", "{negative} to a number".
    POINTS: "is 1.3 points [0.9, 1.7] less {adjective}", "is not distinguishable from conv in {noun} (...)".
    COUNT: "has 1.20x the {noun} of conv"; only where nothing else can be told, and all of them together.
    """

    TIME = "time"
    BYTES = "bytes"
    ERROR = "error"
    POINTS = "points"
    COUNT = "count"


@dataclass(frozen=True)
class Phrase:
    """The words of a quantity in a sentence; of those that its wording does not need none is given.

    A phrase without a `form` is for readings of the quantity's first form, or of none. It is left out where one of the
    quantities in `unless` can be told. `rank`: its place among those of its wording; those without one follow in the
    order of the table.
    """

    wording: Wording
    noun: str = ""
    verb: str = ""
    negative: str = ""
    adjective: str = ""
    form: Form = ""
    unless: tuple[str, ...] = ()
    rank: int = LAST


@dataclass(frozen=True)
class Parts:
    """A fact of readings that splits them into parts, name to size: a table of its own under `title`.

    It is left out where a group has the same fact of one of the quantities in `unless`.
    """

    fact: str
    title: str
    unless: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rate:
    """Work per second, computed from a time when it is read: `of` is the quantity of the time, in seconds.

    The work of one step is its images, or the counts `per_image` of all of them, and the counts `per_step`. Without a
    count `per_image` there is no rate; one `per_step` may be missing.
    """

    of: str
    per_image: tuple[str, ...] = ()
    per_step: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quantity:
    """What a metric gives: a name, a unit (s, B, 1, MAC, fraction), how it is compared, which way is better.

    `limits`: the largest value of a bounded quantity by dtype, where neither suite nor baseline has one. `rank`: its
    place in a table, ascending. `theme`: its table; None leaves it to the kind (bounded and close: exactness) and the
    form (fused: what it costs to run; else to train). `axis`: what it is called on an axis of the figure over kernel
    sizes; empty: it is not drawn there. `rate`: it is no reading but computed from others.
    """

    name: str
    unit: str
    kind: Kind
    better: Literal["lower", "higher"] = "lower"
    forms: tuple[Form, ...] = ("train",)
    what: str = ""
    limits: Mapping[str, float] = field(default_factory=dict, hash=False)
    rank: int = LAST
    theme: Theme | None = None
    phrases: tuple[Phrase, ...] = ()
    parts: tuple[Parts, ...] = ()
    axis: str = ""
    rate: Rate | None = None

    def phrase_of(self, form: str) -> Phrase | None:
        """The words for a reading of this form; None where it is not told."""
        by_form: dict[str, Phrase] = {phrase.form: phrase for phrase in self.phrases}
        general = by_form.get("") if form in ("", self.forms[0]) else None
        return by_form.get(form, general)

    def theme_of(self, form: str, kind: str) -> Theme:
        """The table of a reading of this form, which was read as of this kind."""
        if kind in (Kind.BOUNDED, Kind.CLOSE):
            return Theme.EXACT
        return self.theme or (Theme.RUN if form == "fused" else Theme.TRAIN)

    def to_json(self) -> Json:
        """What was declared: limits, place and words only where there are any."""
        always = {name: getattr(self, name) for name in ("name", "unit", "kind", "better", "forms", "what")}
        return always | _declared(self)

    @classmethod
    def from_json(cls, value: Json) -> Self:
        made: dict[str, Any] = {**value, "kind": Kind(value["kind"]), "forms": tuple(value["forms"])}
        if "theme" in made:
            made["theme"] = Theme(made["theme"])
        if "rate" in made:
            made["rate"] = Rate(**_with_tuples(made["rate"]))
        made["parts"] = tuple(Parts(**_with_tuples(one)) for one in made.get("parts", ()))
        made["phrases"] = tuple(
            Phrase(**{**_with_tuples(one), "wording": Wording(one["wording"])}) for one in made.get("phrases", ())
        )
        return cls(**made)


def _declared(thing: Quantity | Phrase | Parts | Rate) -> dict[str, Json]:
    """Its fields that are not what they are when left out, as JSON."""
    found = {}
    for one in fields(thing):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        value = getattr(thing, one.name)
        if value != default:
            found[one.name] = _as_json(value)
    return found


def _as_json(value: Any) -> Json:
    if isinstance(value, Phrase | Parts | Rate):
        return _declared(value)
    return [_as_json(one) for one in value] if isinstance(value, tuple) else value


def _with_tuples(value: Mapping[str, Json]) -> dict[str, Any]:
    return {name: tuple(each) if isinstance(each, list) else each for name, each in value.items()}
