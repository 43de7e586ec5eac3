"""The formats of a report come from their files: the command line offers them, and nothing heavy is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from synthetic_run import full_run

from harness.errors import UnknownName
from harness.report.document import Column, Table
from harness.report.exporters import EXPORTERS
from harness.report.page import RunReport
from harness.report.writing import report


def test_every_format_writes_a_run():
    whole = RunReport(full_run())
    assert {"text", "md", "tex", "csv", "html"} <= set(EXPORTERS)
    assert all("orepa" in EXPORTERS[name].render(whole) for name in EXPORTERS if name != "html")


def test_the_page_is_made_once_and_a_frame_needs_none():
    whole = RunReport(full_run())
    EXPORTERS["csv"].render(whole)
    assert "page" not in vars(whole)
    EXPORTERS["text"].render(whole)
    assert whole.page is vars(whole)["page"]


def test_a_format_that_does_not_exist_is_refused_with_the_names_of_those_that_do():
    with pytest.raises(UnknownName, match="no report format is called 'markdown'") as refused:
        report(full_run(), "markdown")
    assert "md" in refused.value.remedy


def test_the_command_line_offers_them_and_refuses_others_before_it_opens_the_run(monkeypatch, capsys):
    from harness.cli import main

    monkeypatch.setattr("sys.argv", ["harness", "report", "nowhere", "--format", "markdown"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no report format is called 'markdown'" in capsys.readouterr().err


def test_listing_the_formats_imports_nothing_heavy():
    heavy = ("pandas", "numpy", "scipy", "matplotlib", "jinja2", "tabulate", "torch")
    script = f"import sys, harness.report.exporters; sys.exit(str([m for m in {heavy} if m in sys.modules] or ''))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.stderr.strip() == ""


def test_a_tables_rows_begin_with_their_labels():
    table = Table("t", "c", "block", ("conv", "dbb"), (Column(("params",), ("1", "2")),))
    assert table.rows == [["conv", "1"], ["dbb", "2"]]
