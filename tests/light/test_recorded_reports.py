"""Every run under results/ still opens, and its reports say what they said."""

from __future__ import annotations

import gzip
import io
import json

import pandas as pd
import pytest
from reports_as_recorded import DIGESTED, DIGESTS, FOLDER, digest, rendered, runs

RUNS = runs()


def test_every_run_has_its_recorded_reports():
    assert len(RUNS) >= 8
    assert set(json.loads(DIGESTS.read_text())) == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_the_text_of_a_recorded_run_is_what_it_was(name):
    assert rendered(RUNS[name], "text").splitlines() == (FOLDER / f"{name}.txt").read_text().splitlines()


@pytest.mark.parametrize("name", RUNS)
def test_the_other_formats_of_a_recorded_run_are_what_they_were(name, monkeypatch):
    monkeypatch.setattr("harness.report.charts.png", lambda figure: b"")  # the digest leaves pictures out
    recorded = json.loads(DIGESTS.read_text())[name]
    assert {format: digest(rendered(RUNS[name], format)) for format in DIGESTED} == recorded


@pytest.mark.parametrize("name", RUNS)
def test_the_frame_of_a_recorded_run_is_what_it_was(name):
    before = pd.read_csv(io.BytesIO(gzip.decompress((FOLDER / f"{name}.csv.gz").read_bytes())))
    now = pd.read_csv(io.StringIO(rendered(RUNS[name], "csv")))
    pd.testing.assert_frame_equal(now, before, rtol=1e-9, atol=0)
