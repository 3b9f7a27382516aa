"""A session's own context in the place of a test's first new one: it is what Anchor records, and has the profile.

It exists before the test says what it wants of it. So what Playwright sets when it makes a context is set afterwards:
by its own methods, or by the protocol on each page. What neither can do is refused by name.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from ..errors import AnchorConfigError
from . import apis

if TYPE_CHECKING:
    from collections.abc import Mapping

VIEWPORT = {"width": 1280, "height": 720}  # Playwright's own default for a new context
# Options that only a new context can take, and the value of each that asks for nothing.
_NEVER: dict[str, Any] = {
    "accept_downloads": True,
    "client_certificates": [],
    "has_touch": False,
    "http_credentials": None,
    "is_mobile": False,
    "proxy": None,
    "record_har_path": None,
    "record_video_dir": None,
    "service_workers": "allow",
    "strict_selectors": False,
}
_MEDIA = ("color_scheme", "reduced_motion", "forced_colors", "contrast")
_GONE = "Target page, context or browser has been closed"


def use_own_context(browser: Any) -> None:
    """Have the first context that is asked of *browser* be the one that its session began with."""
    own = _OwnContext(browser)
    browser.new_context = own.new_context
    browser.new_page = own.new_page_in_context


class _OwnContext:
    """The context that a session began with, as a test's."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self._context = browser.contexts[0]
        self._make_context = browser.new_context
        self._make_page = self._context.new_page
        self._is_taken = False
        self._is_closed = False
        self._is_page_taken = False
        self._options: Mapping[str, Any] = {}
        self._prepared: list[Any] = []

    def new_context(self, **options: Any) -> Any:
        """In the place of ``Browser.new_context``."""
        __tracebackhide__ = True
        if self._is_taken:
            return self._make_context(**options)
        self._is_taken = True
        return apis.run(self._browser, self._take(options))

    def new_page_in_context(self, **options: Any) -> Any:
        """In the place of ``Browser.new_page``."""
        __tracebackhide__ = True

        async def new_page() -> Any:
            __tracebackhide__ = True
            context = await apis.settle(self.new_context(**options))
            return await apis.settle(context.new_page())

        return apis.run(self._browser, new_page())

    async def _take(self, options: Mapping[str, Any]) -> Any:
        __tracebackhide__ = True
        _check(options)
        context, self._options = self._context, options
        if headers := options.get("extra_http_headers"):
            await apis.settle(context.set_extra_http_headers(headers))
        if geolocation := options.get("geolocation"):
            await apis.settle(context.set_geolocation(geolocation))
        if permissions := options.get("permissions"):
            await apis.settle(context.grant_permissions(permissions))
        if options.get("offline"):
            await apis.settle(context.set_offline(offline=True))
        if (state := options.get("storage_state")) is not None:
            await self._set_storage(state)
        for page in context.pages:
            await self._prepare(page)
        context.on("page", lambda page: apis.run(page, self._prepare(page)))
        context.new_page = self._new_page
        context.close = self._close
        return context

    async def _set_storage(self, state: Any) -> None:
        __tracebackhide__ = True
        if hasattr(self._context, "set_storage_state"):
            await apis.settle(self._context.set_storage_state(state))
        elif isinstance(state, dict) and not state.get("origins"):
            await apis.settle(self._context.add_cookies(state.get("cookies", [])))
        else:
            raise AnchorConfigError(_refusal(["storage_state (with this version of Playwright)"]))

    def _new_page(self) -> Any:
        """In the place of ``BrowserContext.new_page``; the session's first page comes first."""
        __tracebackhide__ = True
        return apis.run(self._browser, self._open_page())

    async def _open_page(self) -> Any:
        __tracebackhide__ = True
        if self._is_closed:
            from playwright.async_api import Error

            raise Error(f"BrowserContext.new_page: {_GONE}")
        pages = self._context.pages
        if not self._is_page_taken and pages:
            self._is_page_taken = True
            return pages[0]
        page = await apis.settle(self._make_page())
        await self._prepare(page)
        return page

    async def _prepare(self, page: Any) -> None:
        if page in self._prepared:
            return
        self._prepared.append(page)
        with suppress(Exception):  # a page that is closed already: using it raises
            await self._apply(page)

    async def _apply(self, page: Any) -> None:
        options = self._options
        if not options.get("no_viewport"):
            await apis.settle(page.set_viewport_size(options.get("viewport") or VIEWPORT))
        media = {name: options[name] for name in _MEDIA if options.get(name) is not None}
        if media:
            await apis.settle(page.emulate_media(**media))
        if base_url := options.get("base_url"):
            goto = page.goto
            page.goto = lambda url, **more: goto(urljoin(base_url, url), **more)
        if messages := list(_messages(options)):
            protocol = await apis.settle(self._context.new_cdp_session(page))
            for method, parameters in messages:
                await apis.settle(protocol.send(method, parameters))

    def _close(self, *_arguments: Any, **_options: Any) -> Any:
        """In the place of ``BrowserContext.close``, which would end the connection to the browser."""
        return apis.run(self._browser, self._empty())

    async def _empty(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        context = self._context
        if hasattr(context, "unroute_all"):
            await apis.settle(context.unroute_all())
        for page in context.pages[1:]:
            await apis.settle(page.close())
        for page in context.pages[:1]:  # a browser without a page may end
            await apis.settle(type(page).goto(page, "about:blank"))


def _messages(options: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What the protocol is told of each page: for what Playwright has no method on a context or page."""
    messages: list[tuple[str, dict[str, Any]]] = []
    locale, user_agent = options.get("locale"), options.get("user_agent")
    if locale:
        messages.append(("Emulation.setLocaleOverride", {"locale": locale}))
    if locale or user_agent:
        parameters = {"userAgent": user_agent or "", **({"acceptLanguage": locale} if locale else {})}
        messages.append(("Emulation.setUserAgentOverride", parameters))
    if options.get("timezone_id"):
        messages.append(("Emulation.setTimezoneOverride", {"timezoneId": options["timezone_id"]}))
    if options.get("bypass_csp"):
        messages.append(("Page.setBypassCSP", {"enabled": True}))
    if options.get("java_script_enabled") is False:
        messages.append(("Emulation.setScriptExecutionDisabled", {"value": True}))
    if options.get("ignore_https_errors"):
        messages.append(("Security.setIgnoreCertificateErrors", {"ignore": True}))
    if options.get("device_scale_factor") or options.get("screen"):
        size = options.get("viewport") or VIEWPORT
        screen = options.get("screen") or size
        messages.append(
            (
                "Emulation.setDeviceMetricsOverride",
                {
                    **size,
                    "deviceScaleFactor": options.get("device_scale_factor") or 1,
                    "mobile": False,
                    "screenWidth": screen["width"],
                    "screenHeight": screen["height"],
                },
            )
        )
    return messages


def _check(options: Mapping[str, Any]) -> None:
    """Refuse what cannot be set on a context that exists.

    :raises AnchorConfigError: with the names.
    """
    __tracebackhide__ = True
    refused = [name for name, nothing in _NEVER.items() if options.get(name) not in (None, nothing)]
    if refused:
        raise AnchorConfigError(_refusal(refused))


def _refusal(names: list[str]) -> str:
    return (
        f"--anchor-context recorded: a session's own context exists already, and cannot be given {', '.join(names)} "
        "any more. Leave that out, or use --anchor-context new."
    )
