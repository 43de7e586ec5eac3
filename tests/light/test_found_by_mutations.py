"""What no test noticed when it was broken on purpose (tests/mutations/): each is a promise that the code makes."""

from __future__ import annotations

import os

import pytest

from harness.errors import HarnessError
from harness.planning import plan
from harness.records import Fingerprint, Record, Status, TaskKind
from harness.store import journal
from harness.store.directory import choose, describe
from harness.store.journal import Journal
from harness.store.locks import exclusive

RECORD = Record("task", TaskKind.CELL, "cell", "params", 0, "fingerprint", Status.OK)


def test_a_record_is_on_the_disk_before_append_returns(tmp_path, monkeypatch):
    """Without fsync the last minutes of a run are lost with the machine, though append has returned."""
    done = []
    write, sync = os.write, os.fsync
    monkeypatch.setattr(journal.os, "write", lambda file, line: done.append("write") or write(file, line))
    monkeypatch.setattr(journal.os, "fsync", lambda file: done.append("sync") or sync(file))
    book = Journal(tmp_path / "journal.jsonl")
    for _ in range(2):
        book.append(RECORD)
    book.close()
    assert done == ["write", "sync"] * 2


def test_a_line_that_the_disk_took_in_part_is_an_error(tmp_path, monkeypatch):
    """A full disk may take half of a write and raise nothing; the record is not there then."""
    book = Journal(tmp_path / "journal.jsonl")
    write = os.write
    monkeypatch.setattr(journal.os, "write", lambda file, line: write(file, line[:-5]))
    with pytest.raises(HarnessError, match="bytes were written"):
        book.append(RECORD)
    book.close()


def test_only_one_can_hold_a_lock(tmp_path):
    """Two runs at once would spoil each other's times, or write into one journal."""

    def hold(note):
        return exclusive(tmp_path / "run.lock", note, busy="taken", remedy="wait")

    with hold("the first"), pytest.raises(HarnessError, match=r"taken .*the first"), hold("the second"):
        pass
    with hold("the next"):
        pass


def test_what_failed_is_owed_again_only_when_it_is_asked_for(suite_of, tmp_path):
    """A run that goes on would else spend its time on what fails for good."""
    planned = plan(suite_of("axes: {block: conv, backbone: layer}\nmetrics: params"))
    meta = describe(planned, Fingerprint("s", {}, {}), {}, suite_text="", suite_path="", overrides=())
    run, _ = choose(meta, out=tmp_path / "run", new=False, retry=False)
    (task,) = planned.tasks
    record = Record(task.key, task.kind, task.cells[0].id, "params", 0, "s", Status.ERROR, reason="it broke")
    assert run.open_work([record]) == {}
    assert run.open_work([record], retry=True) == {task.key: {(record.cell, "params")}}
