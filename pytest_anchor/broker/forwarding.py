"""Starts the process that forwards this machine's localhost, and tells it of sessions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..registry.locks import open_file
from ..settings import KEY_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# As the broker itself is started: with its path of modules, and with this very package.
_START = """
import json, sys
told = json.loads(sys.stdin.buffer.raw.readline())  # what follows is not read ahead
sys.path[:] = told["path"]
from importlib.util import module_from_spec, spec_from_file_location
home = told["home"]
spec = spec_from_file_location("pytest_anchor", home + "/__init__.py", submodule_search_locations=[home])
sys.modules["pytest_anchor"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
from pytest_anchor.forwarding.process import main
main(told["hosts"])
"""
_HOME = str(Path(__file__).parents[1].absolute())
LOG = "forwarding.log"
ATTEMPTS = 2  # to ask it, where it is just ending
MAX_STARTS = 5  # of the process by itself, where it dies while browsers need it


class _Answer:
    """What the process will have said to one message."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.problem = ""
        self.is_lost = False  # whether the process ended before


class Forwarding:
    """The process that forwards, started with the first session that needs it. Safe to use from several threads.

    :param hosts: the names of this machine that are forwarded; none for no forwarding.
    :param folder: the run's, for a log of what goes wrong.
    """

    def __init__(self, hosts: Sequence[str], folder: Path) -> None:
        self._hosts = list(hosts)
        self._folder = folder
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: dict[int, _Answer] = {}
        self._last = 0
        self._reported: set[str] = set()
        self._urls: dict[str, str] = {}  # of browsers that are attached to, by nonce
        self._starts = 0
        self._is_over = False

    @property
    def pid(self) -> int:
        """The process's id, 0 where there is none."""
        return self._process.pid if self._process is not None else 0

    def attach(self, nonce: str, url: str, timeout: float) -> str:
        """Forward for the browser of a session.

        :param url: of its CDP; it contains the key.
        :param timeout: seconds.
        :returns: ``""``, or why that cannot be; the same reason only once.
        """
        if not self._hosts:
            return ""
        problem = self._ask(timeout, verb="attach", nonce=nonce, url=url)
        with self._lock:
            if not problem:
                self._urls[nonce] = url
            if problem in self._reported:
                return ""
            self._reported.add(problem)
        return problem

    def note_contexts(self, nonce: str, credentials: Sequence[str] | None, timeout: float) -> None:
        """Give credentials to the contexts of a browser that are new since this was last called."""
        if self._hosts:
            self._ask(timeout, verb="contexts", nonce=nonce, credentials=credentials)

    def drop(self, nonces: Iterable[str]) -> None:
        """Leave the browsers of sessions that are about to end; does not wait."""
        nonces = list(nonces)
        with self._lock:
            for nonce in nonces:
                self._urls.pop(nonce, None)
            if self._process is not None and not self._is_over:
                with suppress(OSError):
                    self._send(verb="drop", nonces=nonces)

    def close(self) -> None:
        """End the process; does not wait."""
        with self._lock:
            self._is_over = True
            if self._process is not None and self._process.stdin is not None:
                with suppress(OSError):
                    self._process.stdin.close()

    def _ask(self, timeout: float, **message: Any) -> str:
        deadline = time.monotonic() + timeout
        problem = ""
        for _ in range(ATTEMPTS):
            ending: threading.Thread | None = None
            with self._lock:
                if self._is_over:
                    return ""
                try:
                    if self._process is None:
                        self._process = self._start()
                    process, answer = self._process, self._send(**message)
                except OSError as error:
                    problem = _failure(error.strerror or str(error))
                    if self._process is None or not isinstance(error, BrokenPipeError):
                        return problem
                    ending = self._reader
            if ending is not None:  # the process has just ended, which that thread is about to take in
                ending.join(max(deadline - time.monotonic(), 0.0))
                continue
            if not answer.arrived.wait(max(deadline - time.monotonic(), 0.0)):
                process.kill()  # another takes its place, so that the next session need not wait for this one as well
                return _failure(f"it has not answered in {timeout:g} s")
            problem = answer.problem
            if not answer.is_lost:
                break
        return problem

    def _send(self, **message: Any) -> _Answer:
        assert self._process is not None
        self._last += 1
        answer = self._answers[self._last] = _Answer()
        _write(self._process, {"number": self._last, **message})
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        self._starts += 1
        environment = {name: value for name, value in os.environ.items() if name not in KEY_VARIABLES}
        log = open_file(self._folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-W", "ignore", "-c", _START, str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        finally:
            os.close(log)
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        try:
            _write(process, {"path": sys.path, "home": _HOME, "hosts": self._hosts})
        except OSError:
            process.kill()
            with process:  # its pipes are closed, and its end is taken in
                raise
        self._reader = threading.Thread(target=self._read, args=(process,), name="forwarding", daemon=True)
        self._reader.start()
        return process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with suppress(ValueError, KeyError):
                message = json.loads(line)
                answer = self._answers.pop(message["number"])
                answer.problem = message["problem"]
                answer.arrived.set()
        status = process.wait()
        with self._lock:
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # what was not sent, is not needed
                    pipe.close()  # type: ignore[union-attr]
            self._process = None
            left, self._answers = self._answers, {}
            if self._urls and not self._is_over and self._starts < MAX_STARTS:
                with suppress(OSError):
                    self._process = self._start()
                    for nonce, url in self._urls.items():
                        self._send(verb="attach", nonce=nonce, url=url)
        for answer in left.values():
            answer.is_lost = True
            answer.problem = _failure(f"it ended with status {status}, see {self._folder / LOG}")
            answer.arrived.set()


def _write(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    """Send a line, and do not wait: the end of a session must not, for a process that is stopped.

    :raises OSError: it does not read, and is killed.
    """
    assert process.stdin is not None
    line = json.dumps(message).encode() + b"\n"
    try:
        written = os.write(process.stdin.fileno(), line)
    except BlockingIOError:
        written = 0
    if written != len(line):
        process.kill()
        raise OSError(None, "it does not read what it is told")


def _failure(why: str) -> str:
    return (
        f"this machine's localhost is not there for the browsers: the process that forwards it did not do so ({why}). "
        "The run goes on without; --anchor-forward off silences this"
    )
