"""The report as one HTML file, with its pictures inside."""

from __future__ import annotations

import base64
from importlib.resources import files
from typing import TYPE_CHECKING

from harness.report.document import PUBLISHED
from harness.report.exporter import exporter

if TYPE_CHECKING:
    from harness.report.page import RunReport


@exporter("html", ending="html")
def html(report: RunReport) -> str:
    """From the template beside this file."""
    import jinja2

    source = files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    encoded = [(name, base64.b64encode(picture).decode()) for name, picture in report.pictures]
    return environment.from_string(source).render(page=report.page, heading=PUBLISHED, pictures=encoded)
