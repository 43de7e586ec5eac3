"""Checks against a baseline of another machine, torch or device: what is judged, advised and refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from synthetic_run import CONV, DBB, OREPA, FakeRun, cell, cells_frame, full_run, noisy
from verdict_runs import BASELINE, one_metric, verdicts

from harness.records import Fingerprint, Variant
from harness.verdict.against_baseline import check
from harness.verdict.baseline import make_baseline
from harness.verdict.comparability import Level
from harness.verdict.rows import Check, Row
from harness.verdict.rules import Verdict

CARD = {"model": "Some Card", "driver": "550.1"}


def machine(torch: str = "2.14.1", **fields: object) -> Fingerprint:
    return Fingerprint("abc", {"torch": torch}, {"cpu": {"model": "Some CPU"}, "threads": 2, **fields})


def times(result: Check, label: str = "") -> list[Row]:
    return [row for row in result.rows if row.metric in ("train_step", "latency") and label in row.label]


def test_on_another_machine_times_are_refused_and_counts_still_gate():
    other = machine(cpu={"model": "Another CPU"})
    result = check(full_run(1, slow=2.0, fingerprint=other), BASELINE, strict=True)
    refused = [row for row in result.rows if row.verdict is Verdict.INCOMPARABLE]
    assert refused == times(result)
    assert {row.reason for row in refused} == {"cpu model: Some CPU then, Another CPU now"}
    assert {row.standing for row in refused} == {Level.REFUSED}
    (note,) = result.notes
    assert note.startswith("times on cpu are not compared (cpu model: Some CPU then, Another CPU now): make a baseline")
    assert result.exit_code == 0
    assert check(full_run(1, extra=512, fingerprint=other), BASELINE).exit_code == 1


def test_with_another_torch_times_are_judged_and_advice():
    result = check(full_run(1, slow=2.0, fingerprint=machine("2.15.0")), BASELINE, strict=True)
    assert {(row.verdict, row.gated, row.standing) for row in times(result, "orepa") if row.form != "fused"} == {
        (Verdict.REGRESSED, False, Level.COMPARABLE)
    }
    assert result.notes == ("times on cpu are advice and fail nothing (torch: 2.14.1 then, 2.15.0 now)",)
    assert result.exit_code == 0
    assert check(full_run(1, extra=512, fingerprint=machine("2.15.0")), BASELINE).exit_code == 1
    others = [row for row in result.rows if row not in times(result)]
    assert {(row.gated, row.standing) for row in others} == {(True, Level.SAME)}


def test_advice_gives_the_verdict_that_the_same_machine_would_have_given():
    here, advice = (check(full_run(1, slow=2.0, fingerprint=machine(t)), BASELINE) for t in ("2.14.1", "2.15.0"))
    assert [replace(row, gated=True, standing=Level.SAME) for row in advice.rows] == list(here.rows)


def test_a_slower_reference_is_found_with_another_torch_too():
    result = check(full_run(1, reference_slow=2.0, fingerprint=machine("2.15.0")), BASELINE)
    assert {(c, m) for c, m, _, _ in verdicts(result)} == {(CONV, "train_step"), (CONV, "latency")}


def test_where_nothing_is_timed_the_machine_is_only_mentioned():
    run = one_metric("params", 7, fingerprint=machine("2.15.0", threads=4))
    result = check(run, make_baseline(one_metric("params", 7)))
    assert result.notes == ("threads: 2 then, 4 now", "torch: 2.14.1 then, 2.15.0 now")
    assert (result.exit_code, set(result.counts)) == (0, {Verdict.SAME})


def on_devices(seed: int, *devices: str, slow: float = 1.0, **kwargs) -> FakeRun:
    """conv and orepa timed on each device; `slow` is what a change did to orepa on the last one."""
    rng = np.random.default_rng(seed)
    cells = [cell(block, device=Variant(device)) for device in devices for block in ("conv", "orepa")]
    run = FakeRun(cells_frame(cells), **kwargs)
    for one in cells:
        factor = slow if (one.block.name, one.device.name) == ("orepa", devices[-1]) else 1.0
        run.put(one.id, "latency", factor * noisy(0.05, rng), "train")
    return run


def test_only_the_device_of_a_cell_matters_for_its_times():
    before = make_baseline(on_devices(0, "cuda", "cpu", fingerprint=machine(cuda=CARD)))
    newer = machine(cuda={**CARD, "model": "Another Card"})
    result = check(on_devices(1, "cuda", "cpu", slow=2, fingerprint=newer), before)
    assert {row.verdict for row in times(result, "cuda")} == {Verdict.INCOMPARABLE}
    assert verdicts(result) == {(cell("orepa").id, "latency", "train", "REGRESSED")}
    assert result.exit_code == 1


def test_a_new_driver_makes_the_times_of_its_device_advice_alone():
    before = make_baseline(on_devices(0, "cpu", "cuda", fingerprint=machine(cuda=CARD)))
    now = on_devices(1, "cpu", "cuda", slow=2, fingerprint=machine(cuda={**CARD, "driver": "560.0"}))
    result = check(now, before)
    assert {row.standing for row in times(result, "cuda")} == {Level.COMPARABLE}
    assert {row.standing for row in times(result, "cpu")} == {Level.SAME}
    assert (result.counts[Verdict.REGRESSED], result.exit_code) == (1, 0)


def test_options_of_a_device_do_not_hide_it():
    cells = [cell(block, device=Variant("cuda", {"cudnn_benchmark": True})) for block in ("conv", "orepa")]

    def run(card: dict[str, str]) -> FakeRun:
        made = FakeRun(cells_frame(cells), fingerprint=machine(cuda=card))
        return made.put(cells[0].id, "latency", [1.0] * 4).put(cells[1].id, "latency", [1.5] * 4)

    assert check(run(CARD), make_baseline(run(CARD))).counts == {Verdict.SAME: 2}
    assert check(run({**CARD, "model": "Other"}), make_baseline(run(CARD))).counts == {Verdict.INCOMPARABLE: 2}


def test_a_ratio_between_devices_needs_both_of_them_to_be_the_same():
    cells = [cell(device=Variant(device)) for device in ("cpu", "cuda")]

    def run(card: dict[str, str], ratio: float = 1.0) -> FakeRun:
        made = FakeRun(cells_frame(cells, "device", "cpu"), fingerprint=machine(cuda=card))
        rng = np.random.default_rng(1)
        return made.put(cells[0].id, "latency", noisy(1.0, rng)).put(cells[1].id, "latency", noisy(ratio, rng))

    baseline = make_baseline(run(CARD))
    on_cpu, on_cuda = cells[0].id, cells[1].id
    result = check(run({**CARD, "model": "Other"}, 0.1), baseline)
    assert {row.cell: row.verdict for row in result.rows} == {on_cpu: Verdict.SAME, on_cuda: Verdict.INCOMPARABLE}
    assert check(run(CARD, 3.0), baseline).exit_code == 1


def test_where_the_references_device_is_another_one_the_ratio_is_refused():
    cells = [cell(device=Variant(device)) for device in ("cuda", "cpu")]

    def run(card: dict[str, str]) -> FakeRun:
        made = FakeRun(cells_frame(cells, "device", "cuda"), fingerprint=machine(cuda=card))
        return made.put(cells[0].id, "latency", [1.0] * 4).put(cells[1].id, "latency", [5.0] * 4)

    result = check(run({**CARD, "model": "Other"}), make_baseline(run(CARD)))
    assert result.counts == {Verdict.INCOMPARABLE: 2}


def test_a_slower_reference_does_not_hide_behind_a_slower_card():
    cells = [cell(device=Variant(device)) for device in ("cpu", "cuda")]

    def run(card: dict[str, str], slow: float = 1.0) -> FakeRun:
        made = FakeRun(cells_frame(cells, "device", "cpu"), fingerprint=machine(cuda=card))
        rng = np.random.default_rng(1)
        return made.put(cells[0].id, "latency", slow * noisy(1, rng)).put(cells[1].id, "latency", slow * noisy(1, rng))

    result = check(run({**CARD, "model": "Other"}, slow=3.0), make_baseline(run(CARD)))
    assert verdicts(result) == {(cells[0].id, "latency", "", "REGRESSED")}


def test_a_ratio_to_another_reference_is_not_compared():
    baseline = make_baseline(full_run(0))
    baseline["cells"][OREPA]["reference"] = DBB
    rows = [row for row in check(full_run(1, slow=2), baseline).rows if row.verdict is Verdict.INCOMPARABLE]
    assert {row.metric for row in rows} == {"train_step", "latency", "accuracy"}
