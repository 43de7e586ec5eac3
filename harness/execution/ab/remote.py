"""An executor whose work is done by another source tree, in a server process (server.py) with that tree's harness.

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
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from harness.errors import HarnessError
from harness.execution.executor import Death, Executor
from harness.records import RECORD_VERSION, Json, Status
from harness.worker.messages import Emit, Order, asks

PROTOCOL = 1
"""Goes up when a server and a driver of different revisions would misunderstand each other."""

SERVERS = ("harness.execution.ab.server", "harness.execution.station")
"""The module that a source tree has its server in, the newest place first. `ab` is there for old revisions: those from
before execution was divided into folders have it in the second place, and speak the same protocol."""

START_TIMEOUT = 120.0
"""Seconds until a server must have sent its hello. It takes one; a cold disk on a busy machine takes many."""

EXIT_TIMEOUT = 15.0
"""Seconds that a server may take to end its worker and itself before it is killed."""

TAIL = 4000
"""Characters of a dead server's standard error that are kept."""


class Stopped(Exception):
    """`stop` was called from another thread while a task was performed: no result, and no failure of the task's."""


class RemoteExecutor(Executor):
    """As LocalExecutor, with the harness that lies in `root`, run by `python`. Use as a context manager.

    `hello` is what the server has sent of itself: the digest of its source and the versions of its packages.
    """

    def __init__(self, root: Path, python: str = sys.executable) -> None:
        self.root = root.resolve()
        self.python = python
        self.hello: dict[str, Json] = {}
        self._server: _ServerProcess | None = None

    def __enter__(self) -> Self:
        self._started()
        return self

    def stop(self) -> None:
        """End the server and what it performs; the next call starts a new one.

        Called from another thread it makes the call under way raise Stopped.
        """
        server, self._server = self._server, None
        if server is not None:
            server.end()

    def probe(self, names: list[str]) -> Json:
        server = self._started()
        with self._stopped_on_problems():
            server.send({"probe": names})
            answer = server.receive()
            if answer is None:
                self._check_wanted(server)
                raise _no_server(self.root, self.python, server)
            _refuse(answer)
        return answer["probe"]

    def perform(self, order: Order, emit: Emit) -> Death | None:
        server = self._started()
        with self._stopped_on_problems():
            server.send({"perform": order.to_json()})
            while (answer := server.receive()) is not None:
                _refuse(answer)
                if "end" in answer:
                    return _death(answer["end"])
                reply = emit(answer["message"])
                if asks(answer["message"]):
                    server.send({"reply": reply})
            self._check_wanted(server)
        server.end()
        return server.death()

    def _check_wanted(self, server: _ServerProcess) -> None:
        """Raise Stopped, once it has ended, when `server` ended because of `stop`."""
        if self._server is not server:
            server.end()
            raise Stopped

    @contextlib.contextmanager
    def _stopped_on_problems(self) -> Iterator[None]:
        """A server left in the middle of an answer would go on with it when it is asked the next thing."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    def _started(self) -> _ServerProcess:
        """The server, a new one when the last one has ended."""
        if self._server is not None and self._server.process.poll() is None:
            return self._server
        self.stop()
        server = self._server = _ServerProcess(self.root, self.python, _server_module(self.root))
        with self._stopped_on_problems():
            hello = server.greeting()
            if hello is None:
                self._check_wanted(server)
                raise _no_server(self.root, self.python, server)
            self._check(hello)
        self.hello = hello
        return server

    def _check(self, hello: Json) -> None:
        """HarnessError unless the server is what was asked for, speaks our protocol and is the one we had before."""
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


def _server_module(root: Path) -> str:
    """The name of the server's module in a source tree. HarnessError when the tree has none."""
    for module in SERVERS:
        if (root / module.replace(".", "/")).with_suffix(".py").is_file():
            return module
    raise HarnessError(
        f"the harness in {root} has no module {SERVERS[0]}",
        remedy="that revision is too old to be measured by ab; choose a later one",
    )


class _ServerProcess:
    """A server's process, its two pipes and what it wrote to standard error."""

    def __init__(self, root: Path, python: str, module: str) -> None:
        self.tail = ""
        self.module = module
        self._root = root
        self._ending = threading.Lock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the server
        try:
            self.process = subprocess.Popen(
                [python, "-m", module],
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
                if line.startswith(b'{"hello"'):  # an import may print before the server owns its output
                    return json.loads(line)["hello"]
        finally:
            patience.cancel()
        return None

    def send(self, message: Json) -> None:
        """Write one line; nothing happens when the server has ended, which is found out when it is read from."""
        with contextlib.suppress(OSError, ValueError):
            self._orders.write(json.dumps(message).encode() + b"\n")
            self._orders.flush()

    def receive(self) -> Json | None:
        """The next line; None when the server has ended."""
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
                self.process.wait(EXIT_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            size = os.fstat(self._errors.fileno()).st_size
            # pread: the server's workers may still be writing through the same offset
            self.tail = os.pread(self._errors.fileno(), TAIL, max(0, size - TAIL)).decode(errors="replace").strip()
            self._answers.close()
            self._errors.close()

    def end_text(self) -> str:
        """How it ended, in words that follow "its server"."""
        code = self.process.returncode
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"

    def death(self) -> Death:
        """How it ended, when that was in the middle of a task."""
        status = Status.KILLED if self.process.returncode < 0 else Status.ERROR
        return Death(status, f"the server of {self._root} {self.end_text()}", self.tail)


def _death(end: Json) -> Death | None:
    return None if end is None else Death(Status(end["status"]), end["reason"], end["output"])


def _refuse(answer: Json) -> None:
    if "error" in answer:
        raise HarnessError(answer["error"]["problem"], remedy=answer["error"]["remedy"])


def _no_server(root: Path, python: str, server: _ServerProcess) -> HarnessError:
    server.end()
    return HarnessError(
        f"the harness in {root} cannot be measured: its server {server.end_text()}\n{server.tail}".rstrip(),
        remedy=f"see what 'PYTHONPATH={root} {python} -m {server.module}' says; it needs its dependencies",
    )


def _environment(root: Path) -> dict[str, str]:
    """This process's environment, with `root` before every other place that has a harness."""
    others = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *others])}
