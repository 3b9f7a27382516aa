from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_server import FaultServer

from pytest_anchor.cleanup.policy import SweepPolicy
from pytest_anchor.cleanup.recovery import Recovery, recover_all
from pytest_anchor.settings import Settings

TABLE = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
COLUMNS = ("end", "processes", "mode", "API", "exit status", "alive afterwards", "ended by", "reaper (s)", "prompt (s)")


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started runs without measuring coverage, which takes a quarter of its time and finds nothing new here."""
    for name in os.environ:
        if name.startswith("COVERAGE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def here(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the command line finds its key, base URL and registry."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def next_run(here: Path, settings: Settings, quick: None) -> Callable[..., list[Recovery]]:
    """Recover as the next run in this folder does, without its pauses."""

    def next_run(**changes: object) -> list[Recovery]:
        theirs = settings._replace(folder=here / ".pytest_anchor" / "next", **changes)
        return list(recover_all(theirs, SweepPolicy("recovery", (0.01,), 0.0, ends_unrecorded=True)))

    return next_run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-table", action="store_true", help="write what came out of the fault matrix to docs/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what waits for long, so that others work meanwhile and the run does not end with it."""
    items.sort(key=lambda item: item.path.name not in ("test_matrix.py", "test_chaos.py", "test_containers.py"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the rows of the fault matrix into the docs, in the order of the cases."""
    if not config.getoption("--write-table", default=False):
        return
    properties = [one for report in terminalreporter.getreports("passed") for one in report.user_properties]
    parts = sorted(value for name, value in properties if name == "fault matrix")
    rows = [row for _number, rows in parts for row in rows]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text = TABLE.read_text(encoding="utf-8")
    TABLE.write_text(f"{text.partition(BEGIN)[0]}{BEGIN}\n{table}\n{END}{text.partition(END)[2]}", encoding="utf-8")
    terminalreporter.write_line(f"{len(rows)} cases written to {TABLE}")
