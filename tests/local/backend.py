"""A real backend in a process of its own, and what is left of one."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import requests
from forked import ForkedProcess, local_server
from processes import read_line

ROOT = Path(__file__).parents[2]
T = TypeVar("T")


def until(check: Callable[[], T], within: float = 10.0, every: float = 0.02) -> T:
    """Return what *check* gives as soon as that is true; fail with it after *within* seconds."""
    deadline = time.monotonic() + within
    while not (seen := check()):
        assert time.monotonic() < deadline, f"still {seen!r} after {within} s"
        time.sleep(every)
    return seen


def in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* where Playwright's event loop is not."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


class Backend:
    """A running ``python -m pytest_anchor local`` whose temporary files are in a folder of their own."""

    def __init__(self, *arguments: str, prefix: tuple[str, ...] = (), stdin: str = "", **environ: str) -> None:
        # Short, for Chromium's socket; its own, so that what is left of this backend can be counted.
        self.temp = Path(tempfile.mkdtemp(prefix="pal-", dir="/tmp"))
        command = [sys.executable, "-m", "pytest_anchor", "local", *arguments]
        env = {**os.environ, "TMPDIR": str(self.temp), **environ}
        if prefix:
            self.process = subprocess.Popen(
                [*prefix, *command],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        else:
            self.process = ForkedProcess(command, ROOT, env, local_server, stdin)
        self.lines = [read_line(self.process).strip() for _ in range(1 if stdin else 2)]
        assert self.lines[0].startswith("ANCHORBROWSER_BASE_URL="), self.lines
        self.url = self.lines[0].partition("=")[2]
        self.key = stdin.strip() or self.lines[1].partition("=")[2]
        self.http = requests.Session()
        self.http.headers["anchor-api-key"] = self.key

    def __call__(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        return self.http.request(method, self.url + path, timeout=20, **kwargs)

    def create(self, **body: Any) -> dict[str, str]:
        answer = self("POST", "/v1/sessions", json=body)
        assert answer.status_code == 200, answer.text
        created: dict[str, str] = answer.json()["data"]
        return created

    def status(self, session_id: str) -> str:
        status: str = self("GET", f"/v1/sessions/{session_id}").json()["data"]["status"]
        return status

    def chromiums(self) -> list[int]:
        """The ids of the processes of this backend's Chromiums."""
        return processes(str(self.temp / "pytest-anchor-local-"))

    def profiles(self) -> list[Path]:
        return list(self.temp.glob("pytest-anchor-*/*"))

    def left(self) -> list[object]:
        """What is there of the backend but for itself."""
        return [*self.chromiums(), *self.temp.iterdir()]

    def stop(self, number: int = signal.SIGTERM) -> str:
        """Stop it; return what it wrote to standard error."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        error: str = self.process.communicate(timeout=10)[1]
        self.http.close()
        return error

    def remove(self) -> None:
        try:
            self.stop()
        finally:
            shutil.rmtree(self.temp, ignore_errors=True)


def processes(text: str) -> list[int]:
    """The ids of the living processes with *text* in their command line."""
    listing = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,stat=,args="], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    rows = [re.split(r"\s+", line.strip(), maxsplit=2) for line in listing.splitlines()]
    return [int(row[0]) for row in rows if not row[1].startswith("Z") and len(row) == 3 and text in row[2]]
