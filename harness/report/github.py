"""A check as GitHub shows it: annotations on a step, and the summary of a job in Markdown.

GitHub keeps ten annotations of a type and 1 MiB of summary per step and drops the rest without a word, so what matters
comes first and the rest is counted. Both speak of any Check, whether `harness check` or `harness ab` made it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.report.row_text import change_text, repeats, tally, value_text, verdict_text
from harness.report.workflow_command import workflow_command
from harness.verdict.labels import reading_name
from harness.verdict.rows import Check, Exit, Row
from harness.verdict.rules import Verdict

VARIABLE = "GITHUB_STEP_SUMMARY"
SUMMARY_BYTES = 1024 * 1024
"""docs.github.com, "Workflow commands": "each step is restricted to a maximum size of 1MiB"."""

PER_TYPE = 10
"""Annotations of one type that a step may have (docs.github.com/rest/checks/runs); an action is one step."""

TYPES = ("error", "warning", "notice")
ELSEWHERE = {Verdict.REGRESSED: "notice", Verdict.MISSING: "warning", Verdict.INCONCLUSIVE: "notice"}
"""The type of a row that does not fail the check; what fails it is an error, all others are not annotated."""

MOST_ROWS = 50
MOST_CHARACTERS = 300
"""Of one cell of a table: a reason may be the end of a worker's output."""


# annotations


@dataclass(frozen=True)
class _Annotation:
    type: str
    title: str
    message: str

    def __str__(self) -> str:
        return workflow_command(self.type, self.title, self.message)


def workflow_commands(check: Check) -> str:
    """One line per annotation, errors first, and the tally as the last line."""
    found = [_annotation(check, row) for row in check.rows if check.fails(row) or row.verdict in ELSEWHERE]
    if check.notes:
        found.insert(0, _Annotation("notice", "not the same as then", "\n".join(check.notes)))
    if check.nothing:
        found.insert(0, _Annotation("error", "nothing was compared", check.nothing))
    found += [_Annotation("error", f"failed: {cell}", why or "failed") for cell, why in check.failed.items()]
    return "\n".join([*(str(one) for one in _within_the_limits(found)), tally(check)])


def _annotation(check: Check, row: Row) -> _Annotation:
    type_ = "error" if check.fails(row) else ELSEWHERE[row.verdict] if row.gated else "notice"
    name = f"{row.label}: {reading_name(row.metric, row.form)}"
    change = f" ({change_text(row)})" if change_text(row) else ""
    # named in the message too: a job's log shows no titles
    values = f"{value_text(row, row.before)} -> {value_text(row, row.now)}{change}"
    message = f"{name}: {values}. {row.reason}\n{row.group}"
    if row.command:
        message += f"\nrepeat: {row.command}"
    return _Annotation(type_, f"{verdict_text(row)}: {name}", message)


def _within_the_limits(found: list[_Annotation]) -> list[_Annotation]:
    """Ten of a type; where some are left out, the last notice says how many."""
    by_type = {type_: [one for one in found if one.type == type_] for type_ in TYPES}
    if all(len(some) <= PER_TYPE for some in by_type.values()):
        return [one for some in by_type.values() for one in some]
    room = {**dict.fromkeys(TYPES, PER_TYPE), "notice": PER_TYPE - 1}
    shown = [one for type_, some in by_type.items() for one in some[: room[type_]]]
    left = {type_: len(some) - room[type_] for type_, some in by_type.items() if len(some) > room[type_]}
    counts = ", ".join(f"{number} {type_}{'s' * (number > 1)}" for type_, number in left.items())
    where = "the job summary has the most important, --format json has them all"
    return [*shown, _Annotation("notice", f"and {sum(left.values())} more", f"not annotated: {counts}; {where}")]


# the summary


def write_summary(check: Check, environ: Mapping[str, str], title: str = "harness check") -> Path | None:
    """Append the summary to the file that GITHUB_STEP_SUMMARY names; that file, or None where there is none.

    Nothing is written where the step has used up its 1 MiB. Raises HarnessError when the file cannot be written.
    """
    if not environ.get(VARIABLE):
        return None
    path = Path(environ[VARIABLE])
    try:
        used = path.stat().st_size if path.exists() else 0
        gap = "\n\n" if used else ""  # whatever is there may not end its line
        text = gap + summary(check, title, SUMMARY_BYTES - used - len(gap))
        if text == gap:
            return None
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError as problem:
        remedy = f"let {VARIABLE} name a file that can be written, or unset it"
        raise HarnessError(f"the job summary cannot be written: {problem}", remedy=remedy) from None
    return path


def summary(check: Check, title: str = "harness check", room: int = SUMMARY_BYTES) -> str:
    """The check in Markdown, in at most `room` bytes: with fewer rows where it must be, empty where nothing fits."""
    for most in (MOST_ROWS, 20, 5, 0):
        text = _markdown(check, title, most)
        if len(text.encode("utf-8", "replace")) <= room:
            return text
    return ""


def _markdown(check: Check, title: str, most: int) -> str:
    """`most` is of rows, of failed cells and of commands."""
    sides = f"{_escaped(check.run)} against {_escaped(check.against)} of suite {_escaped(check.suite)}"
    parts = [f"## {_escaped(title)}: {Exit(check.exit_code).words}", f"{sides}: {tally(check)}"]
    if check.nothing:
        parts.append(f"**{_escaped(check.nothing)}**")
    if check.notes and most:
        parts.append("\n".join(["Not the same as then:", "", *(f"- {_escaped(note)}" for note in check.notes[:most])]))
    if check.rows:
        parts.append(_counts(check))
    changed = sorted((row for row in check.rows if row.verdict is not Verdict.SAME), key=lambda r: not check.fails(r))
    if changed and most:
        parts += _table(changed[:most])
    if len(changed) > most:
        parts.append(f"and {len(changed) - most} more (`--format json` has them all)")
    parts += _failed(check, most)
    parts += _commands(check, most)
    return "\n\n".join(parts) + "\n"


def _counts(check: Check) -> str:
    found = [(str(verdict), check.counts[verdict]) for verdict in Verdict if check.counts[verdict]]
    failing = [str(sum(check.fails(row) for row in check.rows if row.verdict == name)) for name, _ in found]
    rows = [[name, str(number), fails] for (name, number), fails in zip(found, failing, strict=True)]
    return _grid(rows, ["verdict", "readings", "of them failing"])


def _table(rows: list[Row]) -> list[str]:
    """What all rows have in common is said once, above them."""
    headers = ["verdict", "cell", "reading", "before", "now", "now / before", "rounds", "why"]
    groups = {row.group for row in rows}
    shared = groups.pop() if len(groups) == 1 else None
    body = [
        [
            verdict_text(row), row.label if row.group == shared or not row.group else f"{row.label} ({row.group})",
            reading_name(row.metric, row.form), value_text(row, row.before), value_text(row, row.now),
            change_text(row), str(row.rounds or ""), row.reason,
        ]
        for row in rows
    ]  # fmt: skip
    return [*([_escaped(shared)] if shared else []), _grid(body, headers)]


def _grid(body: list[list[str]], headers: list[str]) -> str:
    from tabulate import tabulate

    escaped = [[_escaped(text) for text in row] for row in body]
    return str(tabulate(escaped, headers, tablefmt="github", disable_numparse=True))


def _failed(check: Check, most: int) -> list[str]:
    if not check.failed or not most:
        return []
    lines = [f"- {_escaped(cell)}: {_escaped(why)}" for cell, why in list(check.failed.items())[:most]]
    if len(check.failed) > most:
        lines.append(f"- and {len(check.failed) - most} more")
    return ["### Failed cells", "\n".join(lines)]


def _commands(check: Check, most: int) -> list[str]:
    """In a block whose fence is longer than any run of backticks inside."""
    commands = repeats(check)
    if not commands or not most:
        return []
    lines = [f"{command}  # {_one_line(label)}" for command, label in list(commands.items())[:most]]
    if len(commands) > most:
        lines.append(f"# and {len(commands) - most} more")
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", "".join(lines)))])
    return ["### To reproduce", "\n".join([f"{fence}sh", *lines, fence])]


ENTITIES = {sign: f"&#{ord(sign)};" for sign in "&<>|`\\$"}
"""What would end a cell, open a tag or a formula, or escape what follows; none of it is left as it was."""


def _escaped(text: str) -> str:
    """Text that stays on one line, in one cell of a table, and is shown as it is."""
    text = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in _one_line(text))
    if len(text) > MOST_CHARACTERS:
        text = text[: MOST_CHARACTERS - 1] + "…"
    # behind a backslash the rest of Markdown's signs mean nothing; nor does an underscore inside a word
    text = re.sub(r"[*~\[\]#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", lambda found: "\0" + found[0], text)
    return "".join(ENTITIES.get(sign, sign) for sign in text).replace("\0", "\\")


def _one_line(text: str) -> str:
    return " ".join(text.split())
