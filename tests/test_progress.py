import io
import os

import pytest

from pytest_anchor.reporting import progress
from pytest_anchor.reporting.progress import Console, Progress


class Terminal:
    """What a progress line needs of pytest's terminal reporter."""

    def __init__(self, *, isatty: bool) -> None:
        self.isatty = isatty
        self.said: list[tuple[object, ...]] = []

    def ensure_newline(self) -> None:
        self.said.append(("newline",))

    def rewrite(self, line: str, **markup: bool) -> None:
        self.said.append(("rewrite", line, markup))

    def write_line(self, line: str) -> None:
        self.said.append(("line", line))


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> str:
        """What stands in the last line, once every ``\\r`` has been obeyed."""
        line = ""
        for piece in self.getvalue().rpartition("\n")[2].split("\r"):
            line = piece + line[len(piece) :]
        return line.rstrip()


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "QUIET", 0.0)
    monkeypatch.setenv("COLUMNS", "80")


def test_a_quick_sweep_says_nothing():
    terminal = Terminal(isatty=True)
    said = Progress(terminal)
    for _ in range(10):
        said(1, 2)
    said.clear()
    assert terminal.said == []


def test_without_a_terminal_it_says_nothing(at_once):
    said = Progress(None)
    said(1, 2)
    said.clear()


def test_a_terminal_gets_one_bar_that_is_rewritten(at_once):
    terminal = Terminal(isatty=True)
    said = Progress(terminal)
    for done in (0, 1, 3):
        said(done, 3)
    lines = [entry for entry in terminal.said if entry[0] == "rewrite"]
    assert lines == [
        ("rewrite", f"anchor: ending sessions [{'.' * 30}] 0 of 3", {"erase": True}),
        ("rewrite", f"anchor: ending sessions [{'#' * 10}{'.' * 20}] 1 of 3", {"erase": True}),
        ("rewrite", f"anchor: ending sessions [{'#' * 30}] 3 of 3", {"erase": True}),
    ]
    assert terminal.said[0] == ("newline",)
    said.clear()
    said.clear()
    assert terminal.said[-2:] == [lines[-1], ("rewrite", "", {"erase": True})]


@pytest.mark.parametrize("columns", [10, 34, 35, 40, 60, 80, 200])
def test_a_bar_fits_the_terminal(at_once, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal(isatty=True)
    Progress(terminal)(5, 10)
    line = terminal.said[1][1]
    assert len(line) < max(columns, 34)
    assert ("[" in line) == (columns >= 38)
    assert line.endswith("5 of 10")


def test_a_file_gets_few_lines(at_once):
    terminal = Terminal(isatty=False)
    said = Progress(terminal)
    for done in range(50):
        said(done, 50)
    said.clear()
    assert terminal.said == [("newline",), ("line", "anchor: ending sessions: 0 of 50")]


@pytest.mark.parametrize("isatty", [True, False])
def test_nothing_to_end_means_looking_for_lost_ones(at_once, isatty):
    terminal = Terminal(isatty=isatty)
    Progress(terminal)(0, 0)
    assert terminal.said[1][1] == "anchor: looking for sessions whose creation was not answered"


def test_a_console_shows_the_last_line_only_and_is_cleared(at_once):
    screen = Screen()
    said = Progress(Console(screen))
    said(0, 0)
    said(1, 3)
    assert screen.shown == f"anchor: ending sessions [{'#' * 10}{'.' * 20}] 1 of 3"
    said.clear()
    assert screen.shown == ""
    assert "\n" not in screen.getvalue()


def test_a_console_that_is_a_file_gets_lines(at_once, tmp_path):
    with (tmp_path / "log").open("w") as file:
        Progress(Console(file))(2, 3)
    assert (tmp_path / "log").read_text() == "anchor: ending sessions: 2 of 3\n"


def test_a_console_is_asked_whether_it_is_a_terminal():
    ours, theirs = os.openpty()
    with os.fdopen(ours), os.fdopen(theirs, "w") as terminal:
        assert Console(terminal).isatty
