"""Random suites with random API faults, killed at random moments: what holds for all of them when all is quiet.

A failure names its seed. CHAOS_RUNS=200 CHAOS_SEED=1000 in the environment runs that many, from that seed on.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import fault_server as faults
import pytest
from fault_server import FaultServer
from processes import children
from real_runs import DEADLINE, Suite, until
from side_by_side import random_seeds, side_by_side, starting

from pytest_anchor.registry.locks import is_live

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

AT_ONCE = 3
QUIET_WITHIN = 90.0  # seconds

SCOPES = ("anchor_session", *(f"{scope}_anchor_session" for scope in ("class", "module", "package", "session")))

HEAD = """
import time
from concurrent.futures import ThreadPoolExecutor
from pytest_anchor import AnchorError

def create(factory, end):
    try:
        session = factory()
        if end:
            session.end()
    except AnchorError:
        pass
"""


@dataclass
class Attack:
    """What is done to a run once the server has seen *requests*."""

    signals: list[signal.Signals]
    target: str
    requests: int


def write_suite(random: Random, suite: Suite) -> None:
    for number in range(random.randint(1, 2)):
        tests = [_test(random, name) for name in range(random.randint(1, 3))]
        suite.write(HEAD + "\n".join(tests), f"test_{number}.py")


def _test(random: Random, name: int) -> str:
    scopes = random.sample(SCOPES, random.randint(1, 3))
    body = []
    for scope in scopes:
        end, sessions = random.random() < 0.3, random.randint(1, 3)
        if random.random() < 0.3:
            body += ["with ThreadPoolExecutor(4) as pool:"]
            body += [f"    list(pool.map(lambda _: create({scope}, {end}), range({sessions})))"]
        else:
            body += [f"create({scope}, {end})"] * sessions
        body += [f"time.sleep({random.choice((0, 0.1, 0.5))})"]
    body += [f"assert {random.random() < 0.8}"]
    return f"def test_{name}({', '.join(scopes)}):\n" + "".join(f"    {line}\n" for line in body)


def disturb(random: Random, server: FaultServer) -> None:
    """Let the API fail now and then, before and after the effect."""
    probability = random.choice((0.0, 0.1, 0.3))
    some = [faults.reset, faults.lost_reset, faults.lost_truncated, faults.status(500), faults.lost_status(500)]
    some.append(faults.status(429, RateLimit_Policy="q=9; w=1"))
    server.cap = random.choice((None, None, 2, 6))
    for method in ("POST", "GET", "DELETE"):
        some_of_them = [*random.sample(some, 2), faults.slow(random.uniform(0.0, 1.0))]
        server.fail_always(method, faults.one_of(some_of_them, probability, random))


def options(random: Random) -> list[str]:
    end = random.choice(("inline", "background"))
    patience = ["--anchor-sweep-timeout=20", "--anchor-create-timeout=4"]
    return [*patience, f"--anchor-prefetch={random.choice((0, 1, 2))}", f"--anchor-end={end}"]


def plan(random: Random) -> Attack | None:
    if random.random() < 0.2:
        return None
    signals = [random.choice((signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGHUP))]
    if signals[0] in (signal.SIGINT, signal.SIGTERM) and random.random() < 0.5:
        signals.append(random.choice((signals[0], signal.SIGKILL)))
    return Attack(signals, random.choice(("main", "worker", "group", "group")), random.randint(1, 9))


def attack(random: Random, suite: Suite, process: subprocess.Popen[str], planned: Attack) -> None:
    until(lambda: len(suite.server.requests) >= planned.requests or process.poll() is not None, DEADLINE)
    for one in planned.signals:
        with suppress(ProcessLookupError, FileNotFoundError):  # it is gone
            if process.poll() is not None:
                return
            if planned.target == "group":
                os.killpg(process.pid, one)
            else:
                os.kill(_target(random, suite, process.pid, planned), one)


def _target(random: Random, suite: Suite, main: int, planned: Attack) -> int:
    workers = [pid for pid in children(main) if "exec(eval(" in suite.processes.get(pid, "")]
    return random.choice(workers) if workers and planned.target == "worker" else main


def run_case(seed: int, parent: Path) -> None:
    random = Random(seed)
    folder = parent / str(seed)
    folder.mkdir()
    with FaultServer() as server:
        suite = Suite(folder, server)
        write_suite(random, suite)
        disturb(random, server)
        planned = plan(random)
        workers = random.choice((0, 0, 0, 1, 2, 3))
        try:
            with starting:
                process = suite.start("-p", "no:cacheprovider", *options(random), workers=workers, reaper=True)
                until(lambda: server.requests or process.poll() is not None, DEADLINE)
            if planned:
                attack(random, suite, process, planned)
            until(lambda: process.poll() is not None, DEADLINE)
            until(lambda: not any(map(is_live, suite.runs)), DEADLINE)
            check(suite, process, planned)
        finally:
            suite.kill_leftovers()


def check(suite: Suite, process: subprocess.Popen[str], planned: Attack | None) -> None:
    server = suite.server
    until(lambda: not (server.busy or suite.alive or any(one.open for one in suite.records)), QUIET_WITHIN)
    # A reaper goes on looking for what may still come of a creation that nobody knows the end of.
    until(lambda: not suite.processes or any(one.unresolved for one in suite.records), QUIET_WITHIN, pause=0.1)
    suite.kill_leftovers()
    run = suite.outcome(process)
    try:
        suite.check(run)
        assert not run.alive
        assert not any(state.unreadable for state in suite.states)
        for record in suite.records:
            assert record.id is None or not server.sessions[record.id].alive, record
            assert not record.open, record
        if planned is None:
            assert run.status in (0, 1)
            assert "INTERNALERROR" not in run.out + run.err
    except AssertionError as error:
        raise AssertionError(f"{error}\n{planned}\n{server.requests}\n{run.out}\n{run.err}") from None


@random_seeds(6, AT_ONCE)
def test_nothing_survives_chaos(tmp_path: Path, seeds: range):
    side_by_side(lambda seed: run_case(seed, tmp_path), seeds, AT_ONCE)
