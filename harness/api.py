"""The Python way in: what ``harness run`` does, as one call that returns the run."""

from __future__ import annotations

import os

import yaml

from harness.execution import run_suite
from harness.planning import plan as make_plan
from harness.published import check as check_published
from harness.store.run import Run
from harness.suite import Suite, load_suite


def run(
    suite: Suite | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    new: bool = False,
    executor: str = "local",
) -> Run:
    """Measure every cell of `suite` (or of the file it names) and return the run.

    Goes on with the newest unfinished run of the same work, unless `new`; `out` names the directory. Raises
    HarnessError for anything the user can put right; failed cells are records, not exceptions.
    """
    path = "SUITE.yaml" if isinstance(suite, Suite) else os.fspath(suite)
    wanted = suite if isinstance(suite, Suite) else load_suite(suite)
    text = yaml.safe_dump(wanted.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    if not isinstance(suite, Suite):
        with open(path, encoding="utf-8") as file:
            text = file.read()
    planned = make_plan(wanted)
    # a Suite in hand may have been loaded with other axes than its figures speak of
    check_published(wanted, planned, complete=not isinstance(suite, Suite))
    outcome = run_suite(planned, suite_text=text, suite_path=path, out=out, new=new, executor=executor)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return outcome.run
