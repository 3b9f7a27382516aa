"""Every end of a run, in one process and with a worker, plain and ahead, while the API is well and while it is not.

Each end meets each kind of processes every time, in one mode and with one state of the API: they take turns. All
cases are run with
FAULT_MATRIX=all in the environment, and with `--write-table`, which writes down in docs/faults.md what came out.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fault_server as faults
import pytest
from fault_server import FaultServer
from real_runs import DEADLINE, FIND_BROKER, FINISHING, Run, Suite, until
from side_by_side import side_by_side, starting

from pytest_anchor.registry.locks import JOURNAL, is_live

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

TABLE = Path(__file__).parents[2] / "docs" / "faults.md"

ALONE = "one process"
WORKER = "a worker"
TO_MAIN, TO_WORKER, TO_GROUP = (f"{WORKER}, signal to {target}" for target in ("the controller", "it", "the group"))

REAPED_WITHIN = 2.0  # seconds from the last owner's death to the last DELETE, where the API is well
PROMPT_WITHIN = 1.0  # seconds from the last Ctrl-C, asked of a machine that is not busy
PROMPT_WITHIN_BUSY = 3.0  # with every core taken several times over; less than what any of these teardowns would take
BYSTANDER = 1.5  # seconds that a process goes on after a signal that was meant for another

SUITE = (
    FIND_BROKER
    + """
import ctypes, json, os, resource, time
from contextlib import suppress
from pathlib import Path
from pytest_anchor import AnchorLostCreateError

def create(factory):
    with suppress(AnchorLostCreateError):
        factory()

def wait():
    deadline = time.monotonic() + 30
    while not Path("go").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)

def crash():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)

def fill_the_disk():
    (journal,) = Path(".pytest_anchor").glob("*/journal.jsonl")
    resource.prlimit(find_broker(), resource.RLIMIT_FSIZE, (journal.stat().st_size, resource.RLIM_INFINITY))

def settle(creations):
    # A kill before the answer leaves what takes minutes to look for.
    (journal,) = Path(".pytest_anchor").glob("*/journal.jsonl")
    deadline = time.monotonic() + 30
    while True:
        lines = list(map(json.loads, journal.read_text().splitlines()))
        intended = {line["nonce"] for line in lines if line["event"] == "intent"}
        answered = {line["nonce"] for line in lines if line["event"] in ("created", "lost", "refused")}
        if intended == answered and len(intended) >= creations:
            return
        assert time.monotonic() < deadline
        time.sleep(0.02)

held = []

def use_up_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    with suppress(OSError):
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))

def test_it(anchor_session):
    create(anchor_session)
    create(anchor_session)
    Path("pid").write_text(str(os.getpid()))
    settle(CREATIONS)
    os.rename("pid", "ready")
    THE_END
"""
)

NEXT = """
def test_next(anchor_session):
    create(anchor_session)
"""


class End(NamedTuple):
    """A way in which a run ends.

    :param does: what the test does when it has its sessions.
    :param statuses: the exit status, by processes.
    :param signals: what the run is sent while the test waits, or the sweep is at work.
    """

    name: str
    statuses: dict[str, int]
    does: str = "pass"
    args: tuple[str, ...] = ()
    signals: tuple[signal.Signals, ...] = ()
    in_sweep: bool = False


TERM, KILL, HUP, INT = signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGINT

GROUPS = {
    "by itself": [
        End("passes", {ALONE: 0, WORKER: 0}),
        End("fails", {ALONE: 1, WORKER: 1}, "assert 0"),
        End("-x", {ALONE: 1, WORKER: 2}, "assert 0", args=("-x",)),
    ],
    "crash": [
        End("os._exit(3)", {ALONE: 3, WORKER: 1}, "os._exit(3)"),
        End("segfault", {ALONE: -signal.SIGSEGV, WORKER: 1}, "crash()"),
    ],
    "exhaustion": [
        End("out of file descriptors", {ALONE: 0, WORKER: 0}, "use_up_descriptors(); anchor_session()"),
        End("disk full", {ALONE: 1, WORKER: 1}, "fill_the_disk(); anchor_session()"),
    ],
    "interrupt": [
        End("Ctrl-C", {ALONE: 2, TO_MAIN: 2, TO_WORKER: 2, TO_GROUP: 2}, "wait()", signals=(INT,)),
        End("SIGTERM", {ALONE: 2, TO_MAIN: 2, TO_WORKER: 2, TO_GROUP: 2}, "wait()", signals=(TERM,)),
    ],
    "impatience": [
        End("Ctrl-C twice", {ALONE: 2, TO_MAIN: 2, TO_GROUP: 2}, "wait()", signals=(INT, INT)),
        End("Ctrl-C during the sweep", {ALONE: 2, TO_MAIN: 2, TO_GROUP: 2}, signals=(INT,), in_sweep=True),
    ],
    "kill": [
        End("SIGKILL", {ALONE: -KILL, TO_MAIN: -KILL, TO_WORKER: 1, TO_GROUP: -KILL}, "wait()", signals=(KILL,)),
        End("SIGHUP", {ALONE: -HUP, TO_MAIN: -HUP, TO_WORKER: 1, TO_GROUP: -HUP}, "wait()", signals=(HUP,)),
    ],
}


def fine(server: FaultServer) -> None:
    pass


def slow(server: FaultServer) -> None:
    server.fail_always("DELETE", faults.slow(8.0))


def failing(server: FaultServer) -> None:
    server.fail_always("DELETE", faults.for_a_while(3.0, faults.status(500)))


def lost(server: FaultServer) -> None:
    server.fail("POST", faults.lost_reset)
    server.fail_always("DELETE", faults.once_each(faults.lost_reset))


# Those that wait the longest begin first.
APIS = {"DELETE slow (8 s)": slow, "DELETE 500 (3 s)": failing, "answers lost": lost, "fine": fine}


# How the run was told to go about its sessions.
PLAIN, AHEAD = "plain", "ahead"
MODES = {PLAIN: (), AHEAD: ("--anchor-prefetch=1", "--anchor-end=background")}


class Case(NamedTuple):
    end: End
    processes: str
    mode: str
    api: str

    def __str__(self) -> str:
        return "; ".join(self.names)

    @property
    def creations(self) -> int:
        """How many have been begun and answered when the end comes."""
        return 3 if self.mode == AHEAD and not self.end.in_sweep else 2

    @property
    def suite(self) -> str:
        test = SUITE.replace("THE_END", self.end.does).replace("CREATIONS", str(self.creations))
        return test + NEXT if self.mode == AHEAD else test

    @property
    def names(self) -> list[str]:
        return [self.end.name, self.processes, self.mode, self.api]


CASES = {
    group: [
        Case(end, processes, mode, api) for api in APIS for mode in MODES for end in ends for processes in end.statuses
    ]
    for group, ends in GROUPS.items()
}


def in_turn(cases: list[Case], first: int) -> list[Case]:
    """Of the cases that differ only in mode and API one each: the API number *first*, then the next; modes alternate."""
    modes, apis = list(MODES), list(APIS)
    pairs = [case[:2] for case in cases if (case.mode, case.api) == (modes[0], apis[0])]

    def is_its_turn(case: Case) -> bool:
        number = first + pairs.index(case[:2])
        mode = modes[(number + number // len(apis)) % len(modes)]
        return (case.mode, case.api) == (mode, apis[number % len(apis)])

    return list(filter(is_its_turn, cases))


CHOSEN = {group: in_turn(cases, number) for number, (group, cases) in enumerate(CASES.items())}


class Row(NamedTuple):
    """What became of a case."""

    case: Case
    status: int
    alive: int
    ended_by: Counter[str]
    reaped: float | None  # seconds from the last owner's death to the last end, where the reaper was needed
    prompt: float | None  # seconds from the Ctrl-C that hit a teardown or the sweep

    def cells(self) -> list[str]:
        by = ", ".join(f"{who} {count}" for who, count in sorted(self.ended_by.items()))
        seconds = ["" if one is None else f"{one:.1f}" for one in (self.reaped, self.prompt)]
        return [*self.case.names, str(self.status), str(self.alive), by, *seconds]


def run_case(case: Case, parent: Path, *, busy: bool) -> Row:
    folder = parent / re.sub(r"\W+", "-", str(case))
    folder.mkdir()
    with FaultServer() as server:
        suite = Suite(folder, server)
        suite.write(case.suite)
        if case.end.in_sweep:
            suite.write(FINISHING, "conftest.py")
        arrange(case, server)
        try:
            return follow(case, suite, start(case, suite), busy=busy)
        finally:
            suite.kill_leftovers()


def arrange(case: Case, server: FaultServer) -> None:
    APIS[case.api](server)
    if case.end.in_sweep:  # there is something for it to do, and time to meet it
        server.fail_always("POST", faults.lost_reset)
        server.fail_always("GET", faults.slow(0.5))
    if len(case.end.signals) > 1:  # the second meets the teardown at its work
        server.held["DELETE"] = threading.Event()


def start(case: Case, suite: Suite) -> subprocess.Popen[str]:
    workers, args = (0, []) if case.processes == ALONE else (1, ["--max-worker-restart=0"])
    args += ["-s", "-p", "no:cacheprovider", *MODES[case.mode], *case.end.args]
    with starting:
        process = suite.start(*args, workers=workers, reaper=True)
        until(lambda: process.poll() is not None or suite.server.count("POST") >= case.creations, DEADLINE)
    return process


def follow(case: Case, suite: Suite, process: subprocess.Popen[str], *, busy: bool) -> Row:
    """Send the run its signals, and see what becomes of it."""
    server = suite.server
    ends: list[float] = []
    waiter = threading.Thread(target=lambda: (process.wait(), ends.append(time.monotonic())), daemon=True)
    waiter.start()
    sent = None
    deletes = 0
    if case.end.signals:
        sent = send(case, suite, process)
        waiter.join(BYSTANDER)
        for event in server.held.values():
            event.set()
        if case.processes == TO_MAIN:
            time.sleep(max(0.0, sent + BYSTANDER - time.monotonic()))
            deletes = sum(session.ended_by_request for session in server.sessions.values()) - lost_creations(suite)
        (suite.folder / "go").touch()
    waiter.join(DEADLINE)
    until(lambda: not any(map(is_live, suite.runs)), DEADLINE)
    died = time.monotonic()
    suite.wait_for_quiet(30)
    run = suite.outcome(process)
    by = who_ended(suite, run)
    last = max(one.ended for one in server.sessions.values())
    impatient = sent is not None and (len(case.end.signals) > 1 or case.end.in_sweep)
    reaped = max(0.0, last - died) if by["reaper"] else None
    row = Row(case, run.status, len(run.alive), by, reaped, ends[0] - sent if impatient else None)
    try:
        check(row, suite, run, busy=busy)
        if case.processes == TO_MAIN and case.end.signals[0] in (KILL, HUP):
            assert deletes <= 0, "a worker lost its sessions although it lived"
    except AssertionError as error:
        raise AssertionError(f"{error}\n{row}\n{server.requests}\n{run.out}\n{run.err}") from None
    return row


def send(case: Case, suite: Suite, process: subprocess.Popen[str]) -> float:
    """Send the run its signals; returns when it was sent the last."""
    server = suite.server
    ready, finishing = suite.folder / "ready", suite.folder / "finishing"
    if case.end.in_sweep:
        until(finishing.exists)
        looks = server.count("GET")
        until(lambda: server.count("GET") > looks)
    else:
        until(ready.exists)
    ends = server.count("DELETE")  # of what was lost
    for number, one in enumerate(case.end.signals):
        if number:
            until(lambda: server.count("DELETE") > ends)
        if case.processes == TO_GROUP:
            os.killpg(process.pid, one)
        else:
            os.kill(int(ready.read_text()) if case.processes == TO_WORKER else process.pid, one)
    return time.monotonic()


def lost_creations(suite: Suite) -> int:
    """How many creations were lost: what came of them is ended while the run goes on."""
    return sum('"lost"' in line for folder in suite.runs for line in (folder / JOURNAL).read_text().splitlines())


def who_ended(suite: Suite, run: Run) -> Counter[str]:
    """By the record where it is kept, else by what the run said."""
    if records := [one for one in suite.records if one.id]:
        return Counter(one.ended_by for one in records)
    counts = re.search(r"sessions? created: ([^;\n]*)", run.section)
    said = re.findall(r"(\d+) (?:at|by the)? ?([a-z ]+)", counts[1]) if counts else []
    return Counter({who: int(count) for count, who in said})


def check(row: Row, suite: Suite, run: Run, *, busy: bool) -> None:
    case = row.case
    spent = len(case.end.signals) > 1 and run.status == -INT  # it met pytest while that handled the first
    assert spent or run.status == case.end.statuses[case.processes], "another status"
    suite.check(run)
    suite.assert_settled()
    created = len(suite.server.sessions) - len(suite.strangers)
    assert row.ended_by.total() == created >= 2, "an end is not accounted for"
    assert "INTERNALERROR" not in run.out + run.err
    if row.reaped is not None and case.api == "fine":
        assert row.reaped < REAPED_WITHIN, "the reaper took its time"
    if row.prompt is not None:
        assert row.prompt < (PROMPT_WITHIN_BUSY if busy else PROMPT_WITHIN), "the prompt did not come back at once"


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_outlives_the_run(
    tmp_path: Path, record_property: Callable[[str, Any], None], pytestconfig: pytest.Config, group: str
):
    busy = not pytestconfig.getoption("--write-table", default=False)  # its times are to be true
    cases = (CASES if os.environ.get("FAULT_MATRIX") == "all" or not busy else CHOSEN)[group]
    rows = side_by_side(lambda case: run_case(case, tmp_path, busy=busy), cases, len(cases) if busy else 4)
    record_property("fault matrix", [list(CASES).index(group), [row.cells() for row in sorted(rows, key=in_order)]])


def in_order(row: Row) -> tuple[int, ...]:
    ends = [end for group in GROUPS.values() for end in group]
    end, processes, mode, _ = row.case
    return ends.index(end), list(end.statuses).index(processes), list(MODES).index(mode)


@pytest.mark.parametrize("group", GROUPS)
def test_no_end_no_kind_of_processes_and_no_state_of_the_api_is_left_out(group: str):
    every, chosen = CASES[group], CHOSEN[group]
    assert sorted(case.names[:2] for case in chosen for _ in range(len(APIS) * len(MODES))) == sorted(
        case.names[:2] for case in every
    )
    assert {case.api for case in chosen} == set(APIS)
    assert {case.mode for case in chosen} == set(MODES)


def test_the_table_in_the_docs_names_exactly_these_cases():
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    named = [[cell.strip() for cell in line.strip("|").split("|")][:4] for line in lines[2:]]
    assert sorted(named) == sorted(case.names for cases in CASES.values() for case in cases)
