"""Every run under results/ still opens, and its reports say what they said."""

from __future__ import annotations

import gzip
import io
import json
from functools import cache

import pandas as pd
import pytest
from reports_as_recorded import DIGESTED, DIGESTS, FOLDER, digest, rendered, report_of, runs

from harness.report import charts
from harness.report.page import RunReport

RUNS = runs()
DRAWN = "quick"
"""The run whose figures are drawn: it has both kinds."""


@cache
def report(name: str) -> RunReport:
    """A run is read, and its page made, once for all formats."""
    return report_of(RUNS[name])


def said(name: str, format: str) -> str:
    return rendered(report(name), format)


def test_every_run_has_its_recorded_reports():
    assert len(RUNS) >= 8
    assert set(json.loads(DIGESTS.read_text())) == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_the_text_of_a_recorded_run_is_what_it_was(name):
    assert said(name, "text").splitlines() == (FOLDER / f"{name}.txt").read_text().splitlines()


@pytest.fixture
def undrawn(monkeypatch):
    """Figures have their names and no picture: the digest leaves pictures out, and to draw them takes far longer."""
    monkeypatch.setattr(charts, "png", lambda figure: b"")
    monkeypatch.setattr(charts, "ratio_figure", lambda *_: None)
    monkeypatch.setattr(charts, "kernel_size_figure", lambda run: charts._kernel_series(run) or None)


@pytest.mark.parametrize("name", RUNS)
def test_the_other_formats_of_a_recorded_run_are_what_they_were(name, undrawn):
    recorded = json.loads(DIGESTS.read_text())[name]
    assert {format: digest(said(name, format)) for format in DIGESTED} == recorded


@pytest.mark.parametrize("name", RUNS)
def test_the_frame_of_a_recorded_run_is_what_it_was(name):
    before = pd.read_csv(io.BytesIO(gzip.decompress((FOLDER / f"{name}.csv.gz").read_bytes())))
    now = pd.read_csv(io.StringIO(said(name, "csv")))
    pd.testing.assert_frame_equal(now, before, rtol=1e-9, atol=0)


def test_the_figures_of_a_recorded_run_can_be_drawn():
    drawn = dict(charts.figures(report(DRAWN).run, report(DRAWN).groups))
    assert list(drawn) == ["ratios-1", "ratios-2", "kernel-size"]
    assert all(figure.get_axes() for figure in drawn.values())
