"""Published figures: what papers and repositories printed, each with its setting and its source.

`reparam.csv` beside this file holds them. The `published` entries of a suite name the cells that they speak of: `check`
holds an entry against a plan before anything is measured; harness.report.published_tables prints both numbers
side by side.
"""

from harness.published.entries import check, matching_cells
from harness.published.figures import Figure, figure, figures

__all__ = ["Figure", "check", "figure", "figures", "matching_cells"]
