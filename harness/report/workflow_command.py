"""A workflow command, by which a step that runs on GitHub annotates itself."""

from __future__ import annotations


def workflow_command(level: str, title: str, message: str) -> str:
    """A line that GitHub shows as an annotation; `level` is error, warning or notice."""
    return f"::{level} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    """As a workflow command wants its message."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
