"""Suites for Playwright whose runs are switched to the sessions of a backend."""

from __future__ import annotations

import os
import re
from pathlib import Path
from textwrap import dedent
from typing import Any
from unittest.mock import patch

import pytest
from backend import Backend
from forked import ForkedPytest, playwright_server
from processes import CHECKOUT, environment

SYNC = ("-p", "pytest_playwright.pytest_playwright")
ASYNC = (
    *("-p", "pytest_asyncio.plugin", "-p", "pytest_playwright_asyncio.pytest_playwright", "-o", "asyncio_mode=auto"),
    *("-o", "asyncio_default_fixture_loop_scope=session", "-o", "asyncio_default_test_loop_scope=session"),
)
# pytest-playwright has a session-scoped fixture that is a method, of which pytest warns.
STRICT = ("-W", "error", "-W", "ignore:Session-scoped fixtures defined as instance methods")
DEADLINE = 90.0  # seconds for a run


class Run:
    """A run that is over."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err

    @property
    def outcomes(self) -> dict[str, int]:
        """How many tests passed, failed and so on, by pytest's last line."""
        line = self.out.rstrip().rpartition("\n")[2]
        found = {name.rstrip("s"): int(number) for number, name in re.findall(r"(\d+) ([a-z]+)", line)}
        return {name: number for name, number in found.items() if name not in ("warning", "second")}


class Suite:
    """A folder of tests that run on the sessions of a backend."""

    def __init__(self, folder: Path, backend: Backend, pytester: pytest.Pytester) -> None:
        self.folder = folder
        self.backend = backend
        self.more_env: dict[str, str] = {"PYTHONPATH": str(CHECKOUT)}
        self._pytester = pytester
        self.write("[pytest]\n", "pytest.ini")

    def write(self, text: str, name: str = "test_it.py") -> None:
        (self.folder / name).write_text(dedent(text))

    @property
    def _env(self) -> dict[str, str]:
        return environment(
            PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
            ANCHORBROWSER_BASE_URL=self.backend.url,
            ANCHORBROWSER_API_KEY=self.backend.key,
            PLAYWRIGHT_BROWSERS_PATH=str(self.folder / "none"),  # a browser of this machine cannot be launched
            **self.more_env,
        )

    def run(self, mode: str, *args: str, plugins: tuple[str, ...] = SYNC) -> Run:
        """A run in this process."""
        # This process has imported the plugin before pytest could rewrite its assertions, of which it has none.
        strict = [*STRICT, "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        with patch.dict(os.environ, self._env, clear=True):
            before = Path.cwd()
            os.chdir(self.folder)
            try:
                result = self._pytester.runpytest_inprocess(
                    "-p", "pytest_anchor", *plugins, *strict, "--anchor-playwright", mode, *args, no_reraise_ctrlc=True
                )
            finally:
                os.chdir(before)
        return self._checked(int(result.ret), *("\n".join(lines) for lines in (result.outlines, result.errlines)))

    def run_process(self, mode: str, *args: str, plugins: tuple[str, ...] = SYNC) -> Run:
        """A run in a process of its own."""
        process = self.start(mode, *args, plugins=plugins)
        out, err = process.communicate(DEADLINE)
        print(out, err)
        return self._checked(process.wait(), out, err)

    def start(self, mode: str, *args: str, plugins: tuple[str, ...] = SYNC) -> ForkedPytest:
        """Start a run as the first of a process group of its own."""
        own = ("-p", "pytest_anchor", *plugins, *STRICT, "--anchor-playwright", mode)
        return ForkedPytest([*own, *args], self.folder, self._env, playwright_server)

    def _checked(self, status: int, out: str, err: str) -> Run:
        """What no run may ever do."""
        assert self.backend.key not in out
        assert self.backend.key not in err
        assert not self.alive, "a session outlives its run"
        return Run(status, out, err)

    @property
    def listed(self) -> list[dict[str, Any]]:
        """All sessions of the backend."""
        items: list[dict[str, Any]] = self.backend("GET", "/v1/sessions/all/status").json()["data"]["items"]
        return items

    @property
    def alive(self) -> list[str]:
        """Those that run."""
        return [one["session_id"] for one in self.listed if one["status"] == "running"]

    def pages(self, session_id: str) -> list[dict[str, Any]]:
        """The pages of a session."""
        pages: list[dict[str, Any]] = self.backend("GET", f"/v1/sessions/{session_id}/pages").json()
        return pages if isinstance(pages, list) else []
