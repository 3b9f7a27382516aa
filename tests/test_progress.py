import pytest

from pytest_anchor import progress
from pytest_anchor.progress import Progress


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


def test_a_quick_sweep_says_nothing():
    terminal = Terminal(isatty=True)
    said = Progress(terminal)
    for _ in range(10):
        said(1, 2)
    assert terminal.said == []


def test_without_a_terminal_it_says_nothing(monkeypatch):
    monkeypatch.setattr(progress, "QUIET", 0.0)
    Progress(None)(1, 2)


def test_a_terminal_gets_one_line_that_is_rewritten(monkeypatch):
    monkeypatch.setattr(progress, "QUIET", 0.0)
    terminal = Terminal(isatty=True)
    said = Progress(terminal)
    said(1, 3)
    said(2, 3)
    lines = [entry for entry in terminal.said if entry[0] == "rewrite"]
    assert lines == [
        ("rewrite", "anchor: ending sessions: 1 of 3", {"erase": True}),
        ("rewrite", "anchor: ending sessions: 2 of 3", {"erase": True}),
    ]
    assert terminal.said[0] == ("newline",)


def test_a_file_gets_few_lines(monkeypatch):
    monkeypatch.setattr(progress, "QUIET", 0.0)
    terminal = Terminal(isatty=False)
    said = Progress(terminal)
    for done in range(50):
        said(done, 50)
    assert terminal.said == [("newline",), ("line", "anchor: ending sessions: 0 of 50")]


@pytest.mark.parametrize("isatty", [True, False])
def test_nothing_to_end_means_looking_for_lost_ones(monkeypatch, isatty):
    monkeypatch.setattr(progress, "QUIET", 0.0)
    terminal = Terminal(isatty=isatty)
    Progress(terminal)(0, 0)
    assert terminal.said[1][1] == "anchor: looking for sessions whose creation was not answered"
