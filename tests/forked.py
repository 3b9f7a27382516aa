"""Real pytest processes, forked from one that has imported pytest: that costs a third of starting one.

Such a process has a pid, a session, an environment, a working directory and output of its own, and pytest reads its
command line as always. Only what an interpreter does at its start is not done anew, such as reading ``PYTHON…``
variables and the locale.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.reduction import DupFd
from pathlib import Path
from subprocess import TimeoutExpired
from typing import IO

from processes import reset_signals

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pytest", "execnet"])


class ForkedPytest:
    """A pytest process, with the part of :class:`subprocess.Popen` that tests use."""

    def __init__(self, args: list[str], cwd: Path, env: dict[str, str]) -> None:
        self.args = args
        out, err = os.pipe(), os.pipe()
        try:
            self._process = _CONTEXT.Process(target=_run, args=(args, str(cwd), env, DupFd(out[1]), DupFd(err[1])))
            self._process.start()
        finally:
            os.close(out[1])
            os.close(err[1])
        self.pid: int = self._process.pid
        self.stdout, self.stderr = (os.fdopen(end[0], encoding="utf-8", errors="replace") for end in (out, err))
        self._texts = ["", ""]
        self._lock = threading.Lock()  # the exit code can be read once
        self._readers: list[threading.Thread] = []

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with self._lock:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self._process.sentinel], timeout)
        if (code := self.poll()) is None:
            raise TimeoutExpired(self.args, timeout)
        return code

    def communicate(self, timeout: float) -> tuple[str, str]:
        """All that is written until nothing holds the output any more."""
        deadline = time.monotonic() + timeout
        if not self._readers:
            streams = enumerate((self.stdout, self.stderr))
            self._readers = [threading.Thread(target=self._read, args=one, daemon=True) for one in streams]
            for reader in self._readers:
                reader.start()
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                raise TimeoutExpired(self.args, timeout)
        self.wait(max(0.0, deadline - time.monotonic()))
        return self._texts[0], self._texts[1]

    def _read(self, number: int, stream: IO[str]) -> None:
        with suppress(ValueError), stream:  # a test has closed it
            self._texts[number] = stream.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(args: list[str], cwd: str, env: dict[str, str], out: DupFd, err: DupFd) -> None:
    """Become the process that ``python -m pytest`` starts."""
    os.setsid()
    reset_signals()
    for stream, number in ((out, 1), (err, 2)):
        fd = stream.detach()
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    installed = [entry for entry in sys.path if entry.startswith((sys.prefix, sys.base_prefix))]
    sys.path[:] = [cwd, *env["PYTHONPATH"].split(os.pathsep), *installed]
    sys.argv[:] = ["pytest", *args]
    for name in set(sys.modules).intersection(("processes", "forked", "__mp_main__")):
        del sys.modules[name]
    import pytest

    try:
        sys.exit(pytest.console_main())
    except KeyboardInterrupt:  # as the interpreter does
        sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
