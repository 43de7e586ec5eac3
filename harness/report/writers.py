"""Tables as text, Markdown and LaTeX: three ways to write the same strings."""

from __future__ import annotations

from collections.abc import Iterator

from harness.report.tables import Column, Table

WIDTH = 140
"""Columns of a terminal that a text table may fill; wider ones go on in a second block."""

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "µ": r"$\mu$", "×": r"$\times$", "–": "--",
    "…": r"\dots{}", "\n": " ",
}  # fmt: skip


def text(table: Table, width: int = WIDTH) -> str:
    """A terminal table; columns that do not fit into `width` follow in further blocks with the labels repeated."""
    return "\n\n".join(_grid(block) for block in _blocks(table, width))


def _grid(table: Table) -> str:
    from tabulate import tabulate

    headers = [table.corner, *("\n".join(column.heading) for column in table.columns)]
    align = ("left", *("right" for _ in table.columns))
    return str(tabulate(_rows(table), headers, tablefmt="simple", disable_numparse=True, colalign=align))


def _rows(table: Table) -> list[list[str]]:
    return [[label, *(column.cells[i] for column in table.columns)] for i, label in enumerate(table.labels)]


def _blocks(table: Table, width: int) -> Iterator[Table]:
    room = width - max(len(label) for label in (*table.labels, table.corner))
    columns: list[Column] = []
    taken = 0
    for column in table.columns:
        need = 2 + max(len(line) for line in (*column.heading, *column.cells))
        if columns and taken + need > room:
            yield Table(table.title, table.caption, table.corner, table.labels, tuple(columns))
            taken, columns = 0, []
        columns.append(column)
        taken += need
    yield Table(table.title, table.caption, table.corner, table.labels, tuple(columns))


def markdown(table: Table) -> str:
    """A GitHub table."""
    headers = [table.corner, *("<br>".join(markdown_escape(h) for h in column.heading) for column in table.columns)]
    lines = ["| " + " | ".join(headers) + " |", "|---" + "|---:" * len(table.columns) + "|"]
    lines += ["| " + " | ".join(markdown_escape(cell) for cell in row) + " |" for row in _rows(table)]
    return "\n".join(lines)


def markdown_escape(value: str) -> str:
    """User text as it is: no emphasis, no cell borders, no tags."""
    for sign in "\\`*_|<>":
        value = value.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return value.replace("\n", " ")


def latex(table: Table) -> str:
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
    lines += [r"    \midrule", *(_latex_row(row) for row in _rows(table))]
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table*}"])


def _latex_row(cells: list[str]) -> str:
    # a row that starts with [ would be read as the optional argument of the \\ before it
    escaped = [latex_escape(cell) for cell in cells]
    return "    " + " & ".join(f"{{{cell}}}" if cell.startswith("[") else cell for cell in escaped) + r" \\"


def latex_escape(value: str) -> str:
    """User text that LaTeX prints as it is."""
    return "".join(LATEX.get(sign, sign) for sign in value)
