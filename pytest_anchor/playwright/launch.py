"""Has Playwright launch its browsers at Anchor, for as long as a run lasts."""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import pytest

from ..errors import AnchorAPIError, AnchorConfigError, AnchorConnectionError
from . import apis
from .connect import connect
from .life import LaunchedBrowser
from .meaningless import OTHER_BROWSER, PERSISTENT, creation_of
from .recorded import use_own_context
from .sessions import discard

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..plugin.state import Plugin
    from .life import Browsers
    from .sessions import Holder, Lease, Sessions


class Launcher:
    """Launches browsers on sessions.

    :param holder: what is being set up, or the test that runs; ``None`` outside of both.
    """

    def __init__(
        self, plugin: Plugin, sessions: Sessions, browsers: Browsers, holder: Callable[[], Holder | None]
    ) -> None:
        self._plugin = plugin
        self._sessions = sessions
        self._browsers = browsers
        self._holder = holder

    def launch(self, browser_type: Any, options: dict[str, Any]) -> Any:
        """A browser on a session; with Playwright's asynchronous API, an awaitable of one.

        :param options: those of ``BrowserType.launch``.
        """
        __tracebackhide__ = True
        return apis.run(browser_type, self._launch(browser_type, options))

    async def _launch(self, browser_type: Any, options: dict[str, Any]) -> Any:
        __tracebackhide__ = True
        if browser_type.name != "chromium":
            pytest.skip(OTHER_BROWSER.format(browser_type.name))
        self._plugin.termination.catch()  # which only the thread that runs the tests can
        creation = creation_of(options, self._plugin.remark)
        holder = self._holder()
        if self._plugin.upcoming is not None and holder is not None and holder.is_tests_browser:
            self._plugin.upcoming.launched(creation.keywords)
        create = partial(self._sessions.take, self._sessions.source(holder), creation.keywords)
        try:
            browser, lease = await self._connected(browser_type, create, creation.slow_mo)
        except (AnchorAPIError, AnchorConnectionError):
            self._browsers.failed(holder)
            raise
        if self._plugin.client.settings.recorded:
            use_own_context(browser)
        self._browsers.add(LaunchedBrowser(browser, lease, holder, self._sessions))
        return browser

    async def _connected(self, browser_type: Any, create: Callable[[], Lease], slow_mo: float) -> tuple[Any, Lease]:
        __tracebackhide__ = True
        while True:
            lease = await apis.without_blocking(browser_type, create, discard(self._sessions))
            try:
                return await apis.settle(connect(browser_type, lease.session, slow_mo=slow_mo)), lease
            except AnchorConnectionError:
                await apis.without_blocking(browser_type, partial(self._sessions.end, lease))
                if not lease.is_used:  # as it may well have ended itself while no browser was connected
                    raise


class Replacements:
    """Methods of Playwright's that are others for a while."""

    def __init__(self) -> None:
        self._originals: list[tuple[type, str, Any]] = []

    def replace(self, owner: type, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
        """Put what *make* makes of a method of *owner* in its place."""
        original = vars(owner)[name]
        self._originals.append((owner, name, original))
        setattr(owner, name, wraps(original)(make(original)))

    def undo(self) -> None:
        """Put the originals back."""
        while self._originals:
            owner, name, original = self._originals.pop()
            setattr(owner, name, original)


def replace_launches(replacements: Replacements, launcher: Launcher) -> None:
    """Have both of Playwright's APIs launch browsers by *launcher*."""
    from playwright import async_api, sync_api

    def make_launch(_original: Any) -> Callable[..., Any]:
        def launch(browser_type: Any, **options: Any) -> Any:
            __tracebackhide__ = True
            return launcher.launch(browser_type, options)

        return launch

    def make_refusal(_original: Any) -> Callable[..., Any]:
        def refuse(*_arguments: Any, **_options: Any) -> Any:
            __tracebackhide__ = True
            raise AnchorConfigError(PERSISTENT)

        return refuse

    for api in (sync_api, async_api):
        replacements.replace(api.BrowserType, "launch", make_launch)
        replacements.replace(api.BrowserType, "launch_persistent_context", make_refusal)
