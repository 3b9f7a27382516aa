"""Three machines that share a plan, whose server, network and brokers fail at random: what holds when all is quiet.

A failure names its seed. CHAOS_RUNS=300 CHAOS_SEED=1000 in the environment runs that many, from that seed on.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from fault_server import FaultServer
from real_runs import Suite, until
from redis_servers import RealServer, TcpRoute, any_program
from side_by_side import random_seeds, side_by_side, starting

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("redis") is None, reason="redis-py is not installed"),
]

AT_ONCE = 3
LEASE = 4.0  # seconds
QUIET_WITHIN = 60.0  # seconds

# Each session's test writes down until when it needs it.
SUITE = """
import time
from pathlib import Path
import pytest

def note(name, session):
    with Path(name).open("a") as file:
        file.write(f"{{session.id}} {{time.monotonic()}}\\n")

@pytest.mark.parametrize("number", range({count}))
def test_it(anchor_session, number):
    session = anchor_session()
    note("created", session)
    time.sleep({hold})
    note("released", session)
"""

SURVIVOR = """
import time
from pathlib import Path

def test_it(anchor_session):
    anchor_session()
    Path("created").touch()
    while not Path("go").exists():
        time.sleep(0.05)
"""


class Machine:
    """A machine with a suite and its own way to the server."""

    def __init__(self, name: str, case: Case) -> None:
        folder = case.folder / name
        folder.mkdir()
        self.suite = Suite(folder, case.server)
        self.route = TcpRoute(case.real.port)
        self.is_gone = False
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        shared = [f"--anchor-shared-limits={self.route.url}", f"--anchor-shared-lease={LEASE}"]
        patience = ["--anchor-max-sessions=4", "--anchor-create-timeout=60", "--anchor-run-id=ci-7"]
        with starting:
            self.process = self.suite.start("-p", "no:cacheprovider", *shared, *patience, reaper=True)
            until((self.suite.folder / "created").exists, QUIET_WITHIN)

    def signal_broker(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if pid := self.suite.broker:
                os.kill(pid, number)

    def vanish(self) -> None:
        """All that runs on it is gone at once, and no broker is left to clean up."""
        self.is_gone = True
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in self.suite.processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def kill_tests(self) -> None:
        """The broker lives on, and ends what the run has open."""
        self.is_gone = True
        assert self.process is not None
        self.process.kill()

    def times(self, name: str) -> dict[str, float]:
        """When its tests had a session, or did not need it any more, by its id."""
        file = self.suite.folder / name
        lines = file.read_text().splitlines() if file.exists() else []
        return {one: float(moment) for one, moment in (line.split() for line in lines if " " in line)}

    def alive(self) -> list[str]:
        """The sessions of its run that live."""
        names = [run.name for run in self.suite.runs]
        sessions = list(self.suite.server.sessions.values())
        return [one.id for one in sessions if one.alive and any(name in tag for name in names for tag in one.tags)]


class Case:
    """One run of chaos."""

    def __init__(self, seed: int, folder: Path, server: FaultServer, real: RealServer) -> None:
        self.random = Random(seed)
        self.folder = folder
        self.server = server
        self.real = real
        self.machines = [Machine(name, self) for name in ("one", "two", "survivor")]
        self.log: list[str] = []

    def run(self) -> None:
        *others, survivor = self.machines
        for machine in others:
            hold = self.random.choice((0.3, 1.0, 3 * LEASE))
            machine.suite.write(SUITE.format(count=max(1, round(6.0 / hold)), hold=hold))
        survivor.suite.write(SURVIVOR)
        for machine in self.machines:
            machine.start()
        troubles = [threading.Thread(target=trouble) for trouble in self.troubles()]
        for trouble in troubles:
            trouble.start()
        for trouble in troubles:
            trouble.join()
        for machine in self.machines:
            machine.route.restore()
        for machine in others:
            until(lambda machine=machine: machine.process.poll() is not None, QUIET_WITHIN)
        until(lambda: not any(machine.alive() for machine in others), QUIET_WITHIN)
        assert len(survivor.alive()) == 1, "the survivor's session was ended"
        (survivor.suite.folder / "go").touch()
        until(lambda: survivor.process.poll() is not None, QUIET_WITHIN)
        until(lambda: not any(machine.alive() for machine in self.machines), QUIET_WITHIN)

    def troubles(self) -> list[Callable[[], object]]:
        one, two, _ = self.machines
        first = self.random.choice(
            (self.nothing, self.vanish, self.vanish, self.part, self.kill_broker, self.stop_broker)
        )
        second = self.random.choice((self.nothing, self.part, self.kill_broker, self.stop_broker, self.kill_tests))
        server = self.random.choice((self.nothing, self.flush, self.stop_server, self.restart_server))
        return [first(one), second(two), server(one)]

    def later(self, what: str, act: Callable[[], object], undo: Callable[[], object] | None = None, most: float = 0.0):
        """What is done at some moment, and undone a while later."""
        delay, lasting = self.random.uniform(0.0, 4.0), self.random.uniform(0.1, most or 0.2)
        self.log.append(f"after {delay:.1f} s: {what} for {lasting:.1f} s")

        def trouble() -> None:
            time.sleep(delay)
            act()
            if undo is not None:
                time.sleep(lasting)
                undo()

        return trouble

    def nothing(self, _machine: Machine):
        return lambda: None

    def vanish(self, machine: Machine):
        return self.later(f"{machine.suite.folder.name} vanishes", machine.vanish)

    def part(self, machine: Machine):
        route = machine.route
        return self.later(f"{machine.suite.folder.name} is cut off", route.cut, route.restore, 3 * LEASE)

    def kill_broker(self, machine: Machine):
        return self.later(
            f"{machine.suite.folder.name} loses its broker", lambda: machine.signal_broker(signal.SIGKILL)
        )

    def kill_tests(self, machine: Machine):
        return self.later(f"{machine.suite.folder.name}'s tests are killed", machine.kill_tests)

    def stop_broker(self, machine: Machine):
        stop, go_on = (
            lambda number=number: machine.signal_broker(number) for number in (signal.SIGSTOP, signal.SIGCONT)
        )
        return self.later(f"{machine.suite.folder.name}'s broker is stopped", stop, go_on, LEASE / 2)

    def flush(self, _machine: Machine):
        return self.later("the server is flushed", lambda: self.real.ask("FLUSHALL"))

    def stop_server(self, _machine: Machine):
        return self.later("the server is stopped", self.real.stop, self.real.go_on, 2 * LEASE)

    def restart_server(self, _machine: Machine):
        return self.later("the server is killed", self.real.kill, self.real.start, 2 * LEASE)

    def check(self) -> None:
        server = self.server
        for machine in self.machines:
            assert set(machine.suite.strangers) <= set(server.alive), "a session of somebody else was ended"
            if machine.is_gone:
                continue
            released = machine.times("released")
            for one, created in machine.times("created").items():
                session = server.sessions[one]
                assert one in released, f"a test of {machine.suite.folder.name} did not come to its end"
                assert session.ended >= released[one], (
                    f"{one} of {machine.suite.folder.name} was ended {released[one] - session.ended:.1f} s too early, "
                    f"{session.ended - created:.1f} s after its creation"
                )


def run_case(seed: int, parent: Path) -> None:
    folder = parent / str(seed)
    folder.mkdir()
    with FaultServer() as server, RealServer(any_program(), folder / "r") as real:
        case = Case(seed, folder, server, real)
        outs = []
        try:
            case.run()
            case.check()
        except AssertionError as error:
            case.log += [f"{machine.suite.folder.name} has {machine.alive()}" for machine in case.machines]
            for machine in case.machines:
                machine.suite.kill_leftovers()
                outs += [process.communicate(timeout=20)[0] for process in machine.suite.started]
            raise AssertionError("\n".join([str(error), *case.log, *outs])) from None
        finally:
            for machine in case.machines:
                machine.suite.kill_leftovers()
                machine.route.close()


@random_seeds(3, AT_ONCE)
def test_no_session_is_left_and_none_of_a_living_run_is_ended(tmp_path: Path, seeds: range):
    side_by_side(lambda seed: run_case(seed, tmp_path), seeds, AT_ONCE)
