"""The evidence in a test's report: the broker takes it, as soon as the test has failed."""

from __future__ import annotations

import os
from binascii import a2b_base64, b2a_base64
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from ..errors import AnchorError, printable, redact
from ..launcher import elapsed
from .sections import add_section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..session import AnchorSession
    from .outcomes import Outcomes
    from .state import Plugin

TIMEOUT = 5.0  # seconds for all sessions of a test that has failed
LEAST = 1.0  # seconds for the API, of which a page that hangs has taken the rest
SLACK = 2.0  # seconds
MOST = 3  # failures of one run of a test, as of its subtests, of which evidence is taken


class Evidence:
    """A plugin of its own, with a hook that comes before all others: what they read in a report is to be there."""

    NAME = "pytest_anchor_evidence"

    def __init__(self, plugin: Plugin, outcomes: Outcomes) -> None:
        self._plugin = plugin
        self._outcomes = outcomes
        self._seen: list[pytest.TestReport] = []  # of the running test
        self._attachments: list[bytes] = []  # for Allure
        self._properties: list[tuple[str, object]] = []

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Take evidence of a test that fails, and perhaps of others."""
        report: pytest.TestReport = yield
        shows_all = self._plugin.client.settings.screenshot == "on" and call.when == "call"
        if (report.failed and not _may_be_expected(item, call)) or (shows_all and report.passed):
            self.collect(item, report)
        return report

    def test_is_over(self, item: pytest.Item) -> None:
        """Take in that a run of a test is over; another of it has evidence of its own."""
        self._seen = []
        ours = set(map(id, self._properties))  # what others have put there may be of any kind
        item.user_properties[:] = [one for one in item.user_properties if id(one) not in ours]
        self._properties = []
        self._attach_to_allure()

    def collect(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Take evidence of a test's sessions, unless that was done for this report."""
        if any(report is one for one in self._seen) or len(self._seen) == MOST or self._plugin.is_child:
            return
        self._seen.append(report)
        try:
            self._collect(item, report)
        except Exception as error:  # noqa: BLE001 - evidence never changes an outcome
            self._plugin.remark(f"the evidence of {item.nodeid} is incomplete, please report it: {error!r}")

    def _collect(self, item: pytest.Item, report: pytest.TestReport) -> None:
        sessions = self._outcomes.sessions(item)
        if not sessions or self._plugin.client.is_stuck:
            return
        self._keep(sessions, report)
        shots = self._take(item, [session for session in sessions if session.is_open])
        outliving = self._outcomes.outliving(item)
        lines: list[str] = []
        for number, session in enumerate(sessions, 1):
            title = f"session {number}: " if len(sessions) > 1 else ""
            for name, text in self._evidence_of(session, shots.get(session.nonce, []), outliving):
                lines.append(f"{title}{name}: {text}" if name else f"{title}{text}")
                if name:
                    self._add_property(item, report, f"anchor_{name.replace(' ', '_')}", text)
        if lines and report.failed:
            add_section(report, "\n".join(lines))
        for shot in (one for found in shots.values() for one in found):
            if shot["content"]:
                self._add_image(report, shot["content"])

    def _keep(self, sessions: list[AnchorSession], report: pytest.TestReport) -> None:
        """Have a failed test's sessions stay open when they would be ended."""
        open_ones = [session.nonce for session in sessions if session.is_open]
        if self._plugin.client.settings.keep and report.failed and open_ones:
            with suppress(AnchorError):  # then they are ended
                self._plugin.client.request("keep", timeout=TIMEOUT, slack=SLACK, again=True, nonces=open_ones)

    def pytest_enter_pdb(self) -> None:
        """Show where a person can look at the sessions of the test, which live until the debugger is left."""
        item, reporter = self._plugin.item, self._plugin.config.pluginmanager.get_plugin("terminalreporter")
        if item is None or reporter is None or not self._plugin.client.settings.links:
            return
        for session in self._outcomes.sessions(item):
            if session.is_open and session.live_view_url:
                live_view = self._without_key(session.live_view_url)
                reporter.write_line(f"anchor: the live view of the test's session: {live_view}")

    def _take(self, item: pytest.Item, sessions: list[AnchorSession]) -> dict[str, list[dict[str, str]]]:
        """The screenshots of some sessions, or why there is none, by nonce."""
        if not sessions or self._plugin.client.settings.screenshot == "off":
            return {}
        began = elapsed()
        pages = {
            nonce: [b2a_base64(image, newline=False).decode() for image in images]
            for photographer in self._plugin.photographers
            for nonce, images in photographer().items()
        }
        try:
            answer = self._plugin.client.request(
                "screenshots",
                timeout=max(TIMEOUT - (elapsed() - began), LEAST),
                slack=SLACK,
                nonces=[session.nonce for session in sessions],
                pages=pages,
                test=self._plugin.client.name_of(item.nodeid),
                with_content=self._shows_images,
            )
        except AnchorError as error:
            return {session.nonce: [{"path": "", "problem": str(error), "content": ""}] for session in sessions}
        else:
            found: dict[str, list[dict[str, str]]] = answer["screenshots"]
            return found

    def _evidence_of(
        self, session: AnchorSession, shots: list[dict[str, str]], outliving: set[str]
    ) -> Iterator[tuple[str, str]]:
        """The name and the text of each piece of evidence; what has no name is a remark."""
        root = f"{self._plugin.config.rootpath}{os.sep}"
        for shot in shots:
            if shot["path"]:
                yield "screenshot", shot["path"].removeprefix(root)
            else:
                yield "", f"no screenshot: {printable(shot['problem'])}"
        if not (shots or session.is_open):
            yield "", "no screenshot: the session had been ended by then"
        if self._plugin.client.settings.local or not self._plugin.client.settings.links:
            return  # links to the local backend are dead by the time that a person reads of them
        lives_on = session.nonce in outliving or self._plugin.client.settings.keep
        if session.is_open and session.live_view_url and lives_on:
            yield "live view", self._without_key(session.live_view_url)
        base_url = self._plugin.client.settings.base_url
        yield "recording", f"{base_url}/v1/sessions/{session.id}/recordings/primary/fetch"

    def _add_property(self, item: pytest.Item, report: pytest.TestReport, name: str, text: str) -> None:
        """Add a property to this report and to the later ones of the test: JUnit takes those of the last."""
        mine = (name, self._without_key(text))
        self._properties.append(mine)
        item.user_properties.append(mine)
        report.user_properties.append(mine)

    def _without_key(self, text: str) -> str:
        key = self._plugin.secret
        return redact(text, key) if key else text

    @property
    def _shows_images(self) -> bool:
        options = self._plugin.config.option
        return bool(getattr(options, "htmlpath", None) or getattr(options, "allure_report_dir", None))

    def _add_image(self, report: Any, content: str) -> None:
        """Show an image in the reports of pytest-html, and keep it for Allure's.

        :param content: a PNG, in base 64.
        """
        if getattr(self._plugin.config.option, "htmlpath", None):
            image = {
                "name": "screenshot",
                "format_type": "image",
                "content": content,
                "mime_type": "image/png",
                "extension": "png",
            }
            report.extras = [*getattr(report, "extras", ()), image]
        if getattr(self._plugin.config.option, "allure_report_dir", None):
            self._attachments.append(a2b_base64(content))

    def _attach_to_allure(self) -> None:
        """Attach the images of the test that is over: what it has patched is most likely no more."""
        images, self._attachments = self._attachments, []
        if images:
            with suppress(Exception):  # evidence never fails a test
                import allure

                for image in images:
                    allure.attach(image, "screenshot", allure.attachment_type.PNG)


def _may_be_expected(item: pytest.Item, call: pytest.CallInfo[None]) -> bool:
    """Whether pytest may not count this as a failure; that is known only after other plugins have seen the report."""
    if item.config.getoption("runxfail", default=False) or call.excinfo is None:
        return False
    return item.get_closest_marker("xfail") is not None or isinstance(call.excinfo.value, pytest.xfail.Exception)
