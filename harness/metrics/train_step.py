"""Training step: seconds of forward, loss, backward and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from harness.measuring.captured import captured
from harness.measuring.metric import Step, metric
from harness.measuring.subject import Subject, optimizer_options
from harness.measuring.training_step import Training
from harness.quantity import Phrase, Quantity, Rate, Wording
from harness.records import Json, Kind, TaskKind

OPTIONS: dict[str, Json] = {
    "graph": {
        "type": "boolean",
        "default": False,
        "what": "capture the step once and replay it: without what the host does per launch (cuda, xpu)",
    },
}


@metric(
    "train_step",
    TaskKind.VISIT,
    Quantity(
        "train_step",
        "s",
        Kind.SAMPLED,
        what="seconds per training step",
        rank=10,
        phrases=(Phrase(Wording.TIME, "training time", "trains"),),
    ),
    Quantity("throughput", "1/s", Kind.SAMPLED, "higher", what="images per second", rank=20, rate=Rate("train_step")),
    options=OPTIONS,
)
def train_step(subject: Subject, graph: bool) -> Iterable[Step]:
    """Seconds per training step: forward, loss, backward, optimizer.

    On an accelerator many short operations may take longer to launch than to do; `graph` takes the launching away.
    Raises Unsupported for a graph where the device has none, or the step cannot be captured.
    """
    facts: dict[str, Json] = {"optimizer": optimizer_options(subject.cell)["implementation"]}
    step = Training.of(subject)
    run: Callable[[], object] = step
    if graph:
        facts["graph"] = True
        run = captured(subject.device, step, step.x, step.state)
    yield Step("train_step", "train", "s", run, facts)
