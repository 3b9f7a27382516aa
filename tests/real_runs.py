"""Real pytest processes that use a scripted API, and what must hold after every one of them."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import processes
import pytest
from fault_server import KEY, FaultServer
from forked import ForkedPytest
from processes import PATIENCE

from pytest_anchor.registry.folders import remove_sockets
from pytest_anchor.registry.journal import Run as Journal
from pytest_anchor.registry.locks import BROKER_LOCK, is_held
from pytest_anchor.registry.records import Record, State

T = TypeVar("T")

DEADLINE = 60.0  # seconds for one run, far above what it takes


# A conftest.py that tells when the run's end begins: the last sweep follows. What a worker left may have been swept
# before, while the run went on.
FINISHING = """
import pytest
from pathlib import Path

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        Path("finishing").touch()
    return (yield)
"""

# For the text of a test: the pid of the broker of the run that has a record in the working directory.
FIND_BROKER = """
def find_broker():
    from pathlib import Path

    (journal,) = Path(".pytest_anchor").absolute().glob("*/journal.jsonl")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:  # it is gone
            continue
        if b"pytest_anchor.broker" in line and str(journal.parent).encode() in line:
            return int(process.name)
    raise AssertionError("there is no broker")

"""

# For the text of a test as well: stop a process.
STOP = f"""
import os, signal, time
from contextlib import suppress
from pathlib import Path
PATIENCE = {processes.PATIENCE}
{inspect.getsource(processes.stop)}
"""

# For the text of a test as well: kill a process.
KILL = f"""
import os, select, signal
PATIENCE = {processes.PATIENCE}
{inspect.getsource(processes.kill)}
"""

# And as well: fixtures that have a session and raise an error.
BROKEN = """
import pytest

@pytest.fixture
def broken_setup(anchor_session):
    anchor_session()
    raise ValueError

@pytest.fixture
def broken_teardown(anchor_session):
    yield anchor_session()
    raise ValueError
"""


def environment(**more: str) -> dict[str, str]:
    """The environment of a pytest process that loads no plugin but those it is told to."""
    return processes.environment(**{"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **more})


def until(condition: Callable[[], T], seconds: float = 20.0, pause: float = 0.02) -> T:
    """Wait until *condition* holds, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"it did not come about in {seconds} seconds"
        time.sleep(pause)
    return answer


def remove(folder: Path) -> None:
    """Remove a folder of which a broker that leaves may be removing a part just now."""

    def is_gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    until(is_gone)


def processes_in(folder: Path) -> dict[int, str]:
    """The living processes that name the folder or work in it, by pid: runs, workers, reapers, backends."""
    found = {}
    path = str(folder)
    for name in os.listdir("/proc"):  # noqa: PTH208 - hundreds of times a second
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/cmdline", "rb", buffering=0) as file:  # noqa: PTH123
                    command = file.read().replace(b"\0", b" ").decode(errors="replace").rstrip()
                here = f"{os.readlink(f'/proc/{name}/cwd')}/" if command else ""  # noqa: PTH115
            except OSError:  # it is gone, or somebody else's
                continue
            if command and (here.startswith(f"{path}/") or path in command):
                found[int(name)] = command
    return found


@dataclass
class Run:
    """A run that is over."""

    status: int
    out: str
    err: str
    alive: list[str]  # sessions of the run that the server still runs
    recorded: bool  # whether the registry holds a run's folder

    @property
    def outcomes(self) -> dict[str, int]:
        """How many tests passed, failed and so on, by pytest's last line."""
        line = self.out.rstrip().rpartition("\n")[2]
        return {name.rstrip("s"): int(number) for number, name in re.findall(r"(\d+) ([a-z]+)", line)}

    @property
    def section(self) -> str:
        """The text of the terminal's anchor section, ``""`` if there is none."""
        found = re.search(r"^=+ anchor =+\n(.*?)(?=^=+ |\Z)", self.out, re.MULTILINE | re.DOTALL)
        return found[1] if found else ""


class Suite:
    """A folder of tests and the server that its runs use, on which somebody else has sessions, too."""

    def __init__(self, folder: Path, server: FaultServer, request: pytest.FixtureRequest | None = None) -> None:
        self.folder = folder
        self.request = request  # for `run_here`
        self.server = server
        self.registry = folder / ".pytest_anchor"
        self.started: list[subprocess.Popen[str]] = []
        run, nonce = "0123456789abcdef", "fedcba9876543210-0123456789abcdef"
        self.strangers = [
            server.add(),
            server.add("pytest-anchor"),
            server.add("pytest-anchor", f"pytest-anchor:run={run}", f"pytest-anchor:new={nonce}"),
        ]
        (folder / "pytest.ini").write_text("[pytest]\n")

    def write(self, test: str, name: str = "test_it.py") -> None:
        (self.folder / name).write_text(test)

    @property
    def alive(self) -> list[str]:
        """Sessions that the suite's runs created and the server still runs."""
        return [one for one in self.server.alive if one not in self.strangers]

    def start(
        self, *args: str, workers: int = 0, reaper: bool = False, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start pytest, as the first of a process group of its own."""
        xdist = ["-p", "xdist", "-n", str(workers)] if workers else []
        unwatched = [] if reaper else ["--anchor-reaper", "off"]
        arguments = ["-p", "pytest_anchor", "-W", "error", *unwatched, *xdist, *args]
        if env is None and not any(name.startswith("COVERAGE_") for name in os.environ):
            process = ForkedPytest(arguments, self.folder, environment(**self.server.env))
        else:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *arguments],
                cwd=self.folder,
                env=env or environment(**self.server.env),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def outcome(self, process: subprocess.Popen[str]) -> Run:
        """Wait for the end of a run, and for all that holds its output."""
        try:
            out, err = process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            self.signal_all(signal.SIGKILL)
            out, err = process.communicate(timeout=PATIENCE)
            raise AssertionError(f"the run did not end in {DEADLINE} seconds:\n{out}\n{err}") from None
        return Run(process.returncode, out, err, self.alive, bool(self.runs))

    def check(self, run: Run) -> None:
        """Check what no run may ever do."""
        assert set(self.strangers) <= set(self.server.alive), "a session of somebody else was ended"
        assert self.server.count("DELETE", "/v1/sessions/all") == 0
        self.assert_key_nowhere(run)

    def finish(self, process: subprocess.Popen[str]) -> Run:
        """Wait for the end of a run and check what no run may ever do."""
        run = self.outcome(process)
        print(run.out, run.err, sep="\n")  # pytest shows it if the test fails
        self.check(run)
        return run

    def run(self, *args: str, workers: int = 0, reaper: bool = False, env: dict[str, str] | None = None) -> Run:
        before = self.runs
        run = self.finish(self.start(*args, workers=workers, reaper=reaper, env=env))
        if not reaper:
            self.wait_for_broker(before)
        return run

    def wait_for_broker(self, others: list[Path]) -> None:
        """Wait until the broker of a run without a reaper has left: until then, the run counts as live.

        :param others: the folders of runs that are not waited for.
        """
        until(lambda: not any(is_held(run / BROKER_LOCK) for run in self.runs if run not in others))

    def run_here(self, *args: str, workers: int = 0, reaper: bool = False, env: dict[str, str] | None = None) -> Run:
        """A run without workers and a reaper in this process, which costs a fifth of one in its own; others as `run`."""
        if workers or reaper:
            return self.run(*args, workers=workers, reaper=reaper, env=env)
        assert self.request is not None
        runs = self.runs
        pytester: pytest.Pytester = self.request.getfixturevalue("pytester")
        # This process has imported the plugin before pytest could rewrite its assertions, of which it has none.
        strict = ["-W", "error", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        with patch.dict(os.environ, environment(**self.server.env) if env is None else env, clear=True):
            before = Path.cwd()
            os.chdir(self.folder)
            try:
                result = pytester.runpytest_inprocess(
                    "-p", "pytest_anchor", *strict, "--anchor-reaper", "off", *args, no_reraise_ctrlc=True
                )
            finally:
                os.chdir(before)
        out, err = ("".join(f"{line}\n" for line in lines) for lines in (result.outlines, result.errlines))
        run = Run(int(result.ret), out, err, self.alive, bool(self.runs))
        self.wait_for_broker(runs)
        self.check(run)
        return run

    @property
    def runs(self) -> list[Path]:
        """The folders of the runs on record."""
        return sorted(one for one in self.registry.iterdir() if one.is_dir()) if self.registry.is_dir() else []

    @property
    def watched(self) -> bool:
        """Whether one of the suite's runs has a broker, which may be its reaper by now."""
        return any(is_held(one / BROKER_LOCK) for one in self.runs)

    @property
    def processes(self) -> dict[int, str]:
        """What lives of the suite's runs: pids and command lines."""
        return processes_in(self.folder)

    @property
    def broker(self) -> int | None:
        """The pid of the broker of a run that goes on."""
        return next((pid for pid, command in self.processes.items() if "pytest_anchor.broker" in command), None)

    @property
    def states(self) -> list[State]:
        """What the runs on record have written down."""
        return [Journal(folder).read() for folder in self.runs]

    @property
    def records(self) -> list[Record]:
        return [record for state in self.states for record in state.records.values()]

    def assert_settled(self) -> None:
        """Check what must hold when all is quiet: nothing of a run is alive, and the registry knows it."""
        alive = self.alive
        assert not alive, f"{len(alive)} alive at the server"
        assert not self.processes, "a process was left"
        unsettled = [state for state in self.states if not state.settled]
        assert not unsettled, f"the registry does not know that all is over: {unsettled}"
        known = set(self.server.sessions) - set(self.strangers)
        assert {one.id for one in self.records if one.id} <= known, "the registry names sessions of others"

    def kill_leftovers(self) -> None:
        """See to it that nothing of a test lives on, though it has failed."""
        self.signal_all(signal.SIGKILL)
        for process in self.started:
            process.communicate(timeout=PATIENCE)
        for folder in self.runs:  # which no run comes after
            remove_sockets(folder)

    def signal_all(self, number: int) -> None:
        """Send a signal to each process of the suite's runs."""
        for pid in self.processes:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, number)

    def end_kept(self) -> None:
        """Have brokers end what they keep, as a person does who has looked at it."""
        self.signal_all(signal.SIGTERM)
        self.wait_for_quiet()

    def wait_for_quiet(self, seconds: float = 20.0) -> None:
        """Wait until no reaper watches, and no process of the suite's runs is left."""
        until(lambda: not self.watched, seconds)
        until(lambda: not self.processes, seconds, pause=0.1)

    def assert_key_nowhere(self, run: Run) -> None:
        assert KEY not in run.out
        assert KEY not in run.err
        for file in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # a reaper removes what is of no further use
                assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
