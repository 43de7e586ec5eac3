"""Files of JSON lines: whole lines or none, whatever killed the process before, and an error when the disk is full."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from harness.errors import HarnessError
from harness.store.lines import LineFile, read_lines


def test_values_come_back_in_their_order_and_what_is_torn_or_damaged_is_none(tmp_path):
    path = tmp_path / "lines.jsonl"
    with closing(LineFile(path)) as lines:
        lines.append({"a": 1})
    with path.open("a") as file:
        file.write('\n\x00\n{"half": ')
    with closing(LineFile(path)) as lines:
        lines.append([2, 3])
    assert list(read_lines(path)) == [{"a": 1}, None, None, [2, 3]]
    assert list(read_lines(tmp_path / "none.jsonl")) == []


def test_the_separators_are_those_that_were_asked_for(tmp_path):
    with closing(LineFile(tmp_path / "wide")) as wide, closing(LineFile(tmp_path / "dense", (",", ":"))) as dense:
        for lines in (wide, dense):
            lines.append({"a": [1, 2]})
    assert (tmp_path / "wide").read_text() == '{"a": [1, 2]}\n'
    assert (tmp_path / "dense").read_text() == '{"a":[1,2]}\n'


def test_a_disk_that_takes_half_a_line_or_none_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    write = os.write
    with closing(LineFile(tmp_path / "lines")) as lines:
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:4]))
        with pytest.raises(HarnessError, match=r"only 4 of 9 bytes were written\n  try: make room on the disk"):
            lines.append({"a": 1})

        def full(file, data):
            raise OSError("No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(HarnessError, match=r"cannot be written: No space left on device"):
            lines.append({"a": 1})
