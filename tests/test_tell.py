"""The lines in the middle of a run: when they come, how often, and what they leave alone."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from processes import CHECKOUT

from pytest_anchor import limits as limits_module
from pytest_anchor import tell as tell_module
from pytest_anchor.limits import Limits
from pytest_anchor.registry import Run
from pytest_anchor.tell import Teller

SAYS = """
import os, sys, threading
import pytest
from pytest_anchor.tell import Teller

def test_before(): pass

def test_it(request, {fixture}):
    teller = Teller(request.config)
    print("IN"), os.write(1, b"FD")
    thread = threading.Thread(target=teller, args=("from a thread",))
    thread.start()
    thread.join()
    for text in ("a\\x1b[31m waits", "again"): teller(text)
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
    said = [line for line in out.lines if "anchor: " in line]
    assert said == [r"anchor: a\x1b[31m waits"], "not once, glued to something, or raw"
    assert "3 passed" in out.lines[-1]


@pytest.mark.parametrize(
    ("fixture", "expected"), [("capsys", "'IN\\nOUT\\n'"), ("capfd", "'IN\\nFDOUT\\n'")], ids=["capsys", "capfd"]
)
def test_what_a_test_prints_is_still_captured_by_it(pytester: pytest.Pytester, fixture: str, expected: str):
    after = f"assert sorted({fixture}.readouterr().out) == sorted({expected})"
    pytester.makepyfile(SAYS.format(fixture=fixture, after=after))
    result = pytester.runpytest_inprocess("-p", "pytest_anchor", "--capture=fd")
    result.assert_outcomes(passed=3)
    assert sum(line.startswith("anchor: ") for line in result.outlines) == 1


def test_what_a_failing_test_printed_is_shown_as_ever(pytester: pytest.Pytester):
    pytester.makepyfile(SAYS.format(fixture="record_property", after="assert 0"))
    text = pytester.runpytest_inprocess("-p", "pytest_anchor", "--capture=sys").stdout.str()
    assert "Captured stdout call" in text
    assert "IN\nOUT" in text
    assert text.count("anchor: ") == 1


def test_nothing_is_said_without_a_terminal(pytester: pytest.Pytester):
    pytester.makepyfile(SAYS.format(fixture="record_property", after=""))
    result = pytester.runpytest_inprocess("-p", "pytest_anchor", "-p", "no:terminal")
    assert result.ret == 0
    assert "anchor: " not in result.stdout.str() + result.stderr.str()


# What workers wait for.


class Watched:
    """A run in whose registry creations wait, and the terminal that is to tell of it."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self.run = Run(folder / ".pytest_anchor" / "inv", "gw0")
        self.teller = Teller(config)
        self.reporter = config.pluginmanager.get_plugin("terminalreporter")
        self.shown = self.reporter._tw._file = io.StringIO()

    def wait_for_a_slot(self, *tests: str) -> None:
        """Let *tests* wait for a slot that is never free, in this order."""
        self.run.join()
        for test in tests:
            limits = Limits(self.run.folder.parent, self.run.folder, "gw0", account="a", cap=1, timeout=60.0)
            waiting = limits.waiting(test, lambda _text: None)
            if test == tests[0]:
                limits.waiting("holder", lambda _text: None).begin("n", stuck=lambda: False, meanwhile=lambda: None)
            assert limits.look(waiting, test, stuck=False).wait is not None


@pytest.fixture
def watched(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tell_module, "LOOK", 0.02)
    monkeypatch.setattr(limits_module, "TOLD_AFTER", 0.0)
    monkeypatch.setattr(limits_module, "LATE", 60.0)
    watched = Watched(pytester.parseconfigure("-p", "terminal"), pytester.path)
    yield watched
    watched.teller.close()
    watched.run.leave()


def test_one_line_tells_for_all_that_wait(watched: Watched, until):
    watched.teller.watch(watched.run.folder)  # before there is a run's folder
    watched.teller.watch(watched.run.folder)
    watched.wait_for_a_slot("t.py::a", "t.py::b\x1b[31m", "t.py::c")
    until(lambda: watched.shown.getvalue().endswith("\n"))
    time.sleep(0.3)
    (line,) = watched.shown.getvalue().splitlines()
    assert re.fullmatch(
        r"anchor: t\.py::a \[gw0\] waits for a session to end: 1 of at most 1 are open(, and [12] more wait)?", line
    )


def test_dots_are_not_glued_to_it(watched: Watched, until):
    watched.reporter._tw.write("...")  # as under xdist
    watched.wait_for_a_slot("t.py::a\x1b[31m", "t.py::b", "t.py::c")
    watched.teller.watch(watched.run.folder)
    until(lambda: watched.shown.getvalue().endswith("\n"))
    assert watched.shown.getvalue().splitlines() == [
        "...",
        r"anchor: t.py::a\x1b[31m [gw0] waits for a session to end: 1 of at most 1 are open, and 2 more wait",
    ]


def test_it_is_said_again_after_a_while(watched: Watched, until, monkeypatch):
    monkeypatch.setattr(tell_module, "EVERY", 0.1)
    watched.wait_for_a_slot("t.py::a")
    watched.teller.watch(watched.run.folder)
    until(lambda: watched.shown.getvalue().count("anchor: ") >= 3)
    watched.teller.close()
    assert watched.teller._watch is not None
    watched.teller._watch.join(30)
    assert not watched.teller._watch.is_alive()


def test_a_terminal_that_is_closed_is_no_trouble(watched: Watched, until, monkeypatch):
    asked = []
    real = limits_module.waits_in
    monkeypatch.setattr(limits_module, "waits_in", lambda run: asked.append(run) or real(run))
    monkeypatch.setattr(tell_module, "EVERY", 0.0)
    watched.shown.close()
    watched.wait_for_a_slot("t.py::a")
    watched.teller.watch(watched.run.folder)
    until(lambda: len(asked) > 3)  # the thread's death would be a warning, and that an error


def test_a_folder_that_cannot_be_looked_at_is_no_trouble(watched: Watched, tmp_path: Path):
    watched.teller.watch(tmp_path / ("x" * 5000))
    time.sleep(0.2)
    assert watched.teller._watch is not None
    assert watched.teller._watch.is_alive()


def test_nobody_watches_without_a_terminal(pytester: pytest.Pytester, tmp_path: Path):
    config = pytester.parseconfigure("-p", "no:terminal")
    teller = Teller(config)
    teller.watch(tmp_path)
    assert teller._watch is None
    teller.close()
