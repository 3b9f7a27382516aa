"""pytest's hooks of a run whose browsers are Anchor's."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from ..plugin.sections import add_section
from ..plugin.upcoming import CONNECTION
from .downloads import replace_downloads
from .history import replace_history
from .launch import Launcher, Replacements, replace_launches
from .life import Browsers, is_playwrights
from .meaningless import OTHER_BROWSER
from .registration import NAME
from .sessions import Holder, Sessions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..plugin.state import Plugin


class Switch:
    """Knows what is set up and which test runs, and so what a browser is launched for."""

    def __init__(self, plugin: Plugin) -> None:
        if find_spec("playwright") is None:
            raise pytest.UsageError(
                "--anchor-playwright needs Playwright: pip install 'pytest-anchor[playwright]', or pytest-playwright"
            )
        self._plugin = plugin
        self._mode = plugin.client.settings.playwright
        self._browsers = Browsers()
        plugin.photographers.append(self._browsers.screenshots)
        self._sessions = Sessions(plugin, is_shared=self._mode == "worker")
        self._launcher = Launcher(plugin, self._sessions, self._browsers, lambda: self._holder)
        self._replacements = Replacements()
        self._setups: list[Holder] = []
        self._test: Holder | None = None
        self._died_in: pytest.Item | None = None  # the last test that failed as a session was over

    @property
    def _holder(self) -> Holder | None:
        return self._setups[-1] if self._setups else self._test

    @contextmanager
    def test_of(self, request: pytest.FixtureRequest) -> Iterator[None]:
        """Take in the test that runs, by the request of a fixture of its own."""
        self._test = self._setups[-1]
        assert self._test.request is request
        try:
            yield
        finally:
            self._test = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> None:
        """Begin, before a test module is imported."""
        if not self._plugin.runs_tests:
            return
        browsers = session.config.getoption("browser", None) or []
        if isinstance(browsers, list) and browsers and "chromium" not in browsers:
            raise pytest.UsageError(f"--browser {browsers[0]}: {OTHER_BROWSER.format(browsers[0])}")
        replace_launches(self._replacements, self._launcher)
        replace_downloads(self._replacements)
        replace_history(self._replacements)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            name = getattr(getattr(item, "callspec", None), "params", {}).get("browser_name", "chromium")
            if name != "chromium":
                item.add_marker(pytest.mark.skip(reason=OTHER_BROWSER.format(name)))
            names = getattr(item, "fixturenames", [])
            if CONNECTION in names:
                # What records a test, pytest-playwright sets up before or after the browser. It needs it to the end.
                names.remove(CONNECTION)
                names.insert(0, CONNECTION)
            if self._mode == "worker" and "browser" in names and item.get_closest_marker("anchor"):
                self._plugin.remark(
                    f"the anchor marker of {item.nodeid} and others changes nothing for their browsers: with "
                    "--anchor-playwright worker, tests share a session. Use anchor_session_defaults, or test."
                )

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: pytest.FixtureRequest) -> Any:
        __tracebackhide__ = True
        self._setups.append(Holder(fixturedef, request))
        try:
            return (yield)
        finally:
            self._setups.pop()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._sessions.is_over = False
        if self._mode == "test":
            _check_scopes(item)
        self._browsers.before_test()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Any:
        __tracebackhide__ = True
        self._sessions.is_over = True
        try:
            return (yield)
        except Exception as error:
            # What cannot be closed since the session was over, has failed the test already, and for that reason.
            if self._died_in is not item or not is_playwrights(error):
                raise
        finally:
            self._browsers.after_test()

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if report.failed and call.excinfo is not None and self._browsers.open:
            for text in self._browsers.explain(call.excinfo.value):
                self._died_in = item
                add_section(report, text)
        return report

    def pytest_unconfigure(self) -> None:
        self._replacements.undo()


def _check_scopes(item: pytest.Item) -> None:
    """Fail a test that shares a browser with others, where each has its own: pytest's own words tell no remedy."""
    definitions = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    own = definitions.get("browser", ())
    if not any(getattr(one.func, "__module__", "").startswith(NAME.rpartition(".")[0]) for one in own):
        return
    for name, found in definitions.items():
        for one in found:
            if one.scope != "function" and "browser" in one.argnames:
                pytest.fail(
                    f"the fixture {name}, of scope {one.scope!r}, uses browser, of which each test has its own with "
                    "--anchor-playwright test: give it the scope 'function', or run with --anchor-playwright worker",
                    pytrace=False,
                )
