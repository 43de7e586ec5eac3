"""The report as LaTeX: booktabs tables, to be put into a paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.report.document import Table
from harness.report.exporter import exporter

if TYPE_CHECKING:
    from harness.report.page import RunReport

SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "µ": r"$\mu$", "×": r"$\times$", "–": "--",
    "…": r"\dots{}", "\n": " ",
}  # fmt: skip


@exporter("tex", ending="tex")
def latex(report: RunReport) -> str:
    """The tables with their captions, and the sentences as paragraphs."""
    page, escape = report.page, latex_escape
    lines = [r"% \usepackage{booktabs,textcomp} \usepackage[T1]{fontenc}"]
    for one in page.published:
        lines += [f"\n{latex_table(one.table)}", "", *(escape(note) + r"\par" for note in one.notes)]
    for section in page.sections:
        lines += [f"\n{latex_table(table)}" for table in section.tables]
        lines += ["", *(escape(sentence) for sentence in section.sentences)]
    lines += ["", rf"\noindent {escape(page.hardware)}. {escape(page.note)}"]
    lines += [escape(line) + r"\par" for line in page.failures]
    return "\n".join(lines) + "\n"


def latex_table(table: Table) -> str:
    """A booktabs table; needs ``\\usepackage{booktabs}`` and a T1 font encoding."""
    depth = max(len(column.heading) for column in table.columns)
    headings = [[*column.heading, *[""] * (depth - len(column.heading))] for column in table.columns]
    lines = [
        r"\begin{table*}[t]",
        r"  \centering\small",
        rf"  \caption{{{latex_escape(f'{table.title}: {table.caption}.')}}}",
        rf"  \begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"    \toprule",
    ]
    for level in range(depth):
        corner = table.corner if level == 0 else ""
        lines.append(_latex_row([corner, *(heading[level] for heading in headings)]))
    lines += [r"    \midrule", *(_latex_row(row) for row in table.rows)]
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table*}"])


def _latex_row(cells: list[str]) -> str:
    # a row that starts with [ would be read as the optional argument of the \\ before it
    escaped = [latex_escape(cell) for cell in cells]
    return "    " + " & ".join(f"{{{cell}}}" if cell.startswith("[") else cell for cell in escaped) + r" \\"


def latex_escape(value: str) -> str:
    """User text that LaTeX prints as it is."""
    return "".join(SIGNS.get(sign, sign) for sign in value)
