"""An executor whose work is done by another source tree, in a station process (station.py) with that tree's harness.

Two of them, one for each revision, are what ``harness ab`` lets take turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.errors import HarnessError
from harness.execution.local import Death, Emit
from harness.records import RECORD_VERSION, Json, Status, Task

PROTOCOL = 1
"""Goes up when a station and a driver of different revisions would misunderstand each other."""

START_TIMEOUT = 120.0
"""Seconds until a station must have said hello. It takes one; a cold disk on a busy machine takes many."""

LINGER = 15.0
"""Seconds that a station may take to end its worker and itself before it is killed."""

TAIL = 4000
"""Characters of a dead station's standard error that are kept."""


def asks(message: Json) -> bool:
    """Whether a worker that sent `message` waits for a reply."""
    return "turn" in message


class Stopped(Exception):
    """`stop` was called from another thread while a task was performed: no result, and no failure of the task's."""


class RemoteExecutor:
    """As LocalExecutor, with the harness that lies in `root`, run by `python`. Use as a context manager.

    `hello` is what the station said of itself: the digest of its source and the versions of its packages.
    """

    def __init__(self, root: Path, python: str = sys.executable) -> None:
        self.root = root.resolve()
        self.python = python
        self.hello: dict[str, Json] = {}
        self._station: _Station | None = None

    def __enter__(self) -> RemoteExecutor:
        self._started()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the station and what it performs; the next call starts a new one.

        Called from another thread it makes the call under way raise Stopped.
        """
        station, self._station = self._station, None
        if station is not None:
            station.end()

    def probe(self, names: list[str]) -> Json:
        """Facts about devices and threads, found out where torch is."""
        station = self._started()
        with self._stopped_on_problems():
            station.send({"probe": names})
            answer = station.receive()
            if answer is None:
                self._check_wanted(station)
                raise _no_station(self.root, self.python, station)
            _refuse(answer)
        return answer["probe"]

    def perform(
        self,
        task: Task,
        key: str,
        fingerprint: str,
        emit: Emit,
        *,
        lockstep: bool = False,
        slowed: Mapping[str, float] | None = None,
    ) -> Death | None:
        """Hand every message of the worker to `emit` and its replies back; None when the task was finished."""
        station = self._started()
        order = {"task": task.to_json(), "key": key, "fingerprint": fingerprint}
        order |= {"lockstep": lockstep, "slowed": dict(slowed or {})}
        with self._stopped_on_problems():
            station.send({"perform": order})
            while (answer := station.receive()) is not None:
                _refuse(answer)
                if "end" in answer:
                    return _death(answer["end"])
                reply = emit(answer["message"])
                if asks(answer["message"]):
                    station.send({"reply": reply})
            self._check_wanted(station)
        station.end()
        return station.death()

    def _check_wanted(self, station: _Station) -> None:
        """Raise Stopped, once it has ended, when `station` ended because of `stop`."""
        if self._station is not station:
            station.end()
            raise Stopped

    @contextlib.contextmanager
    def _stopped_on_problems(self) -> Iterator[None]:
        """A station left in the middle of an answer would go on with it when it is asked the next thing."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def _started(self) -> _Station:
        """The station, a new one when the last one has ended."""
        if self._station is not None and self._station.process.poll() is None:
            return self._station
        self.stop()
        if not (self.root / "harness" / "execution" / "station.py").is_file():
            raise HarnessError(
                f"the harness in {self.root} has no module harness.execution.ab.server",
                remedy="that revision is too old to be measured by ab; choose a later one",
            )
        station = self._station = _Station(self.root, self.python)
        with self._stopped_on_problems():
            hello = station.greeting()
            if hello is None:
                self._check_wanted(station)
                raise _no_station(self.root, self.python, station)
            self._check(hello)
        self.hello = hello
        return station

    def _check(self, hello: Json) -> None:
        """HarnessError unless the station is what was asked for, speaks our language and is the one we had before."""
        spoken = (hello.get("protocol"), hello.get("records"))
        if spoken != (PROTOCOL, RECORD_VERSION):
            raise HarnessError(
                f"the harness in {self.root} speaks protocol {spoken[0]} with records of version {spoken[1]}, "
                f"this one {PROTOCOL} and {RECORD_VERSION}",
                remedy="compare two revisions on the same side of that change, with the harness of one of them",
            )
        package = Path(hello["package"]).resolve()
        if not package.is_relative_to(self.root):
            raise HarnessError(
                f"the harness in {self.root} was to be measured, but {self.python} imports the one in {package}",
                remedy="use a Python that heeds PYTHONPATH, without options such as -I or -E",
            )
        if self.hello and hello["source"] != self.hello["source"]:
            raise HarnessError(
                f"the source in {self.root} was changed while it was being measured",
                remedy="commit what you want to measure and name the commit, then start again",
            )


class _Station:
    """The process, its two pipes and what it wrote to standard error."""

    def __init__(self, root: Path, python: str) -> None:
        self.tail = ""
        self._root = root
        self._ending = threading.Lock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the station
        try:
            self.process = subprocess.Popen(
                [python, "-m", "harness.execution.ab.server"],
                cwd=root,
                env=_environment(root),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
        except OSError as problem:
            self._errors.close()
            raise HarnessError(f"{python} cannot be run: {problem}", remedy="name a Python that has torch") from None
        assert self.process.stdin
        assert self.process.stdout
        self._orders, self._answers = self.process.stdin, self.process.stdout

    def greeting(self) -> Json | None:
        """What it says first; None when it ended instead, or said nothing for too long."""
        patience = threading.Timer(START_TIMEOUT, self.process.kill)
        patience.start()
        try:
            while line := self._answers.readline():
                if line.startswith(b'{"hello"'):  # an import may print before the station owns its output
                    return json.loads(line)["hello"]
        finally:
            patience.cancel()
        return None

    def send(self, message: Json) -> None:
        """Write one line; nothing happens when the station has ended, which is found out when it is read from."""
        with contextlib.suppress(OSError, ValueError):
            self._orders.write(json.dumps(message).encode() + b"\n")
            self._orders.flush()

    def receive(self) -> Json | None:
        """The next line; None when the station has ended."""
        try:
            line = self._answers.readline()
        except ValueError:  # closed by `end` in another thread
            return None
        return json.loads(line) if line.endswith(b"\n") else None

    def end(self) -> None:
        """Close its input, which ends it and its worker; kill it when that does not help."""
        with self._ending:
            if self._errors.closed:
                return
            with contextlib.suppress(OSError):
                self._orders.close()
            try:
                self.process.wait(LINGER)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            size = os.fstat(self._errors.fileno()).st_size
            # pread: the station's workers may still be writing through the same offset
            self.tail = os.pread(self._errors.fileno(), TAIL, max(0, size - TAIL)).decode(errors="replace").strip()
            self._answers.close()
            self._errors.close()

    def how(self) -> str:
        """How it ended, in words that follow "its station"."""
        code = self.process.returncode
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def death(self) -> Death:
        """How it ended, when that was in the middle of a task."""
        status = Status.KILLED if self.process.returncode < 0 else Status.ERROR
        return Death(status, f"the station of {self._root} {self.how()}", self.tail)


def _death(end: Json) -> Death | None:
    return None if end is None else Death(Status(end["status"]), end["reason"], end["output"])


def _refuse(answer: Json) -> None:
    if "error" in answer:
        raise HarnessError(answer["error"]["problem"], remedy=answer["error"]["remedy"])


def _no_station(root: Path, python: str, station: _Station) -> HarnessError:
    station.end()
    return HarnessError(
        f"the harness in {root} cannot be measured: its station {station.how()}\n{station.tail}".rstrip(),
        remedy=f"see what 'PYTHONPATH={root} {python} -m harness.execution.ab.server' says; it needs its dependencies",
    )


def _environment(root: Path) -> dict[str, str]:
    """This process's environment, with `root` before every other place that has a harness."""
    others = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *others])}
