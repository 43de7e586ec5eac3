"""Tables, sentences and figures of a run. No torch; matplotlib only when something is drawn."""

from harness.report.page import FORMATS, report, write_all
from harness.report.showing import show

__all__ = ["FORMATS", "report", "show", "write_all"]
