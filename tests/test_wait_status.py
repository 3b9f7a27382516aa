"""The lines in the middle of a run: when they come, how often, and what they leave alone."""

from __future__ import annotations

import io
import json
import socket
import threading
from contextlib import suppress

import fault_server as faults
import pytest
from processes import CHECKOUT

from pytest_anchor.broker import server as server_module
from pytest_anchor.broker import waits as waits_module
from pytest_anchor.broker.waits import Waits
from pytest_anchor.budget import admission
from pytest_anchor.client import Client
from pytest_anchor.errors import AnchorError
from pytest_anchor.plugin.wait_status import WaitStatusReporter
from pytest_anchor.session import AnchorSessionFactory


@pytest.fixture(autouse=True)
def no_other_plugins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


SAYS = """
import os, sys, threading
import pytest
from pytest_anchor.plugin.wait_status import WaitStatusReporter

def test_before(): pass

def test_it(request, {fixture}):
    reporter = WaitStatusReporter(request.config)
    print("IN"), os.write(1, b"FD")
    thread = threading.Thread(target=reporter, args=("from a thread",))
    thread.start()
    thread.join()
    for text in ("a\\x1b[31m waits", "again"): reporter(text)
    print("OUT")
    {after}

def test_after(): pass
"""


@pytest.mark.parametrize("option", ["-v", "-q", "-s", "--capture=sys", "--capture=fd", "--capture=tee-sys"])
def test_a_line_of_its_own_in_the_middle_of_a_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, option: str
):
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    pytester.makepyfile(SAYS.format(fixture="record_property", after=""))
    run = pytester.runpytest_subprocess if option == "--capture=fd" else pytester.runpytest_inprocess
    out = run("-p", "pytest_anchor", option).stdout
    reported = [line for line in out.lines if "anchor: " in line]
    assert reported == [r"anchor: a\x1b[31m waits", "anchor: again"], "glued to something, or raw"
    assert "3 passed" in out.lines[-1]


@pytest.mark.parametrize(
    ("fixture", "expected"), [("capsys", "'IN\\nOUT\\n'"), ("capfd", "'IN\\nFDOUT\\n'")], ids=["capsys", "capfd"]
)
def test_what_a_test_prints_is_still_captured_by_it(pytester: pytest.Pytester, fixture: str, expected: str):
    after = f"assert sorted({fixture}.readouterr().out) == sorted({expected})"
    pytester.makepyfile(SAYS.format(fixture=fixture, after=after))
    result = pytester.runpytest_inprocess("-p", "pytest_anchor", "--capture=fd")
    result.assert_outcomes(passed=3)
    assert sum(line.startswith("anchor: ") for line in result.outlines) == 2


def test_what_a_failing_test_printed_is_shown_as_ever(pytester: pytest.Pytester):
    pytester.makepyfile(SAYS.format(fixture="record_property", after="assert 0"))
    text = pytester.runpytest_inprocess("-p", "pytest_anchor", "--capture=sys").stdout.str()
    assert "Captured stdout call" in text
    assert "IN\nOUT" in text
    assert text.count("anchor: ") == 2


def test_nothing_is_reported_without_a_terminal(pytester: pytest.Pytester):
    pytester.makepyfile(SAYS.format(fixture="record_property", after=""))
    result = pytester.runpytest_inprocess("-p", "pytest_anchor", "-p", "no:terminal")
    assert result.ret == 0
    assert "anchor: " not in result.stdout.str() + result.stderr.str()


# What workers wait for.


class Watched:
    """A run whose sessions are limited to one, and the terminal that is to tell what waits for it."""

    def __init__(self, config: pytest.Config, client: Client) -> None:
        self.client = client
        self.worker = Client(client.settings._replace(owner="gw0"))
        self.reporter = WaitStatusReporter(config)
        self.terminal = config.pluginmanager.get_plugin("terminalreporter")
        self.shown = self.terminal._tw._file = io.StringIO()
        self.threads: list[threading.Thread] = []

    def wait_for_a_slot(self, *tests: str) -> None:
        """Let *tests* of a worker wait for a slot that is never free, in this order."""
        AnchorSessionFactory(self.client, {}, lambda: "holder")()
        for test in tests:
            factory = AnchorSessionFactory(self.worker, {}, lambda test=test: test)
            self.threads.append(threading.Thread(target=self._create, args=(factory,), daemon=True))
            self.threads[-1].start()
            while self.waiting < len(self.threads):
                self.threads[-1].join(0.01)
                assert self.threads[-1].is_alive()

    @staticmethod
    def _create(factory: AnchorSessionFactory) -> None:
        with suppress(AnchorError):
            factory()

    @property
    def waiting(self) -> int:
        (file,) = self.client.settings.folder.parent.glob("limits-*.json")
        return len(json.loads(file.read_text().partition("\n")[0])["queue"])

    def close(self) -> None:
        self.worker.leave()
        for thread in self.threads:
            thread.join(30)
        for connection in list(self.client._open - set(self.client._idle)):  # the one that is followed
            connection._socket.shutdown(socket.SHUT_RDWR)
        if self.reporter._watch is not None:
            self.reporter._watch.join(30)


@pytest.fixture
def watched(pytester: pytest.Pytester, serve, settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(admission, "REPORT_AFTER", 0.0)
    config = pytester.parseconfigure("-p", "terminal")
    watched = Watched(config, serve(settings._replace(max_sessions=1, create_timeout=60.0)))
    yield watched
    watched.close()


def test_one_line_tells_for_all_that_wait(watched: Watched, until):
    watched.wait_for_a_slot("t.py::a\x1b[31m", "t.py::b", "t.py::c")
    watched.terminal._tw.write("...")  # as under xdist
    watched.reporter.watch(watched.client)
    watched.reporter.watch(watched.client)
    until(lambda: watched.shown.getvalue().count("\n") > 1)
    watched.threads[-1].join(1.0)
    assert watched.shown.getvalue().splitlines() == [
        "...",
        r"anchor: t.py::a\x1b[31m [gw0] waits for a session to end: 1 of at most 1 are open, and 2 more wait",
    ]


def test_a_terminal_may_watch_before_anything_waits(watched: Watched, until):
    watched.reporter.watch(watched.client)
    watched.wait_for_a_slot("t.py::a")
    until(lambda: watched.shown.getvalue().endswith("\n"))
    assert watched.shown.getvalue() == "anchor: t.py::a [gw0] waits for a session to end: 1 of at most 1 are open\n"


def test_it_is_reported_again_after_a_while(watched: Watched, until, monkeypatch):
    monkeypatch.setattr(waits_module, "LINE_INTERVAL", 0.1)
    watched.wait_for_a_slot("t.py::a")
    watched.reporter.watch(watched.client)
    until(lambda: watched.shown.getvalue().count("anchor: ") >= 3)


def test_a_terminal_that_is_closed_is_no_trouble(watched: Watched, until):
    watched.shown.close()
    watched.wait_for_a_slot("t.py::a")
    watched.reporter.watch(watched.client)
    until(lambda: not watched.reporter._watch.is_alive())  # an exception in it would be a warning, and that an error


def test_a_broker_that_is_gone_is_no_trouble(pytester: pytest.Pytester, settings, until):
    reporter = WaitStatusReporter(pytester.parseconfigure("-p", "terminal"))
    reporter.watch(Client(settings._replace(socket_folder="/dev/null/no-folder")))
    until(lambda: not reporter._watch.is_alive())


def test_nothing_watches_without_a_terminal(pytester: pytest.Pytester, settings):
    reporter = WaitStatusReporter(pytester.parseconfigure("-p", "no:terminal"))
    reporter.watch(Client(settings))
    assert reporter._watch is None


# What the broker thinks worth a line.


def test_a_process_is_told_once_in_a_while_what_its_creations_wait_for(server, serve, settings, monkeypatch):
    monkeypatch.setattr(admission, "REPORT_AFTER", 0.0)
    notes: list[str] = []
    client = serve(settings._replace(create_timeout=30.0))
    factory = AnchorSessionFactory(client, {}, lambda: "t.py::x", on_wait=notes.append)
    for _ in range(2):  # one test after the other
        server.fail("POST", faults.status(429, Retry_After="0.6"))
        factory()
    assert notes == ["t.py::x waits for its turn: the API asked to wait"]
    monkeypatch.setattr(server_module, "NOTE_INTERVAL", 0.1)
    connection = client._idle.pop()  # with another, the next note is due at once
    factory()
    client._idle.insert(0, connection)
    server.fail("POST", faults.status(429, Retry_After="0.8"))
    factory()
    assert len(notes) > 2


def test_what_does_not_wait_any_more_is_not_reported(monkeypatch):
    monkeypatch.setattr(waits_module, "LINE_INTERVAL", 0.0)
    waits, lines, one, other = Waits(), [], object(), object()

    def report(text: str) -> None:
        lines.append(text)
        waits.remove(one)
        if len(lines) == 3:
            raise BrokenPipeError

    waits.report(one, "a waits")
    waits.report(other, "b waits")
    waits.report(one, "a waits for its turn")
    with pytest.raises(BrokenPipeError):
        waits.follow(report)
    assert lines == ["a waits for its turn, and 1 more wait", "b waits", "b waits"]
