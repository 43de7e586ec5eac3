"""Latency: seconds of a forward pass, as trained and as fused."""

from __future__ import annotations

from collections.abc import Iterable

from harness.measuring.calls import forward_pass
from harness.measuring.captured import captured
from harness.measuring.metric import Step, metric
from harness.measuring.subject import Subject
from harness.quantity import Phrase, Quantity, Rate, Theme, Wording
from harness.records import Form, Json, Kind, TaskKind

FORMS: tuple[Form, ...] = ("train", "fused")

OPTIONS: dict[str, Json] = {
    "cold": {
        "type": "boolean",
        "default": False,
        "what": "empty the device's last-level cache of the model before each pass",
    },
    "graph": {
        "type": "boolean",
        "default": False,
        "what": "capture the pass once and replay it: without what the host does per launch (cuda, xpu)",
    },
}


@metric(
    "latency",
    TaskKind.VISIT,
    Quantity(
        "latency",
        "s",
        Kind.SAMPLED,
        forms=FORMS,
        what="seconds per forward pass in eval mode",
        rank=70,
        theme=Theme.RUN,
        phrases=(
            Phrase(Wording.TIME, "running time as trained", "runs as trained", form="train"),
            Phrase(Wording.TIME, "running time", "runs"),
            Phrase(Wording.TIME, "running time once fused", "runs fused", form="fused"),
        ),
        axis="time of a forward pass",
    ),
    Quantity(
        "mac_rate",
        "MAC/s",
        Kind.SAMPLED,
        "higher",
        FORMS,
        "multiply-accumulates per second of a forward pass",
        rank=80,
        theme=Theme.RUN,
        axis="achieved rate",
        rate=Rate("latency", per_image=("macs",), per_step=("macs_kernel",)),
    ),
    options=OPTIONS,
)
def latency(subject: Subject, cold: bool, graph: bool) -> Iterable[Step]:
    """Seconds per forward pass in eval mode, of the train form and, where there is one, of the fused form.

    A small model stays in the cache from one pass to the next, and what the host does for every launch may take
    longer than the work: `cold` and `graph` take away the one and the other. Raises Unsupported for a graph where
    the device has none, or the model cannot be captured.
    """
    facts = {name: True for name, on in (("cold", cold), ("graph", graph)) if on}
    x = subject.input()
    for form in subject.forms:
        run = forward_pass(subject, subject.model(form).eval(), x)
        yield Step("latency", form, "s", captured(subject.device, run, x) if graph else run, facts, cold)
