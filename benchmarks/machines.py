"""Machines whose runs share one plan by a server, against the time that the plan itself imposes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "many_machines")]

from measure import Answer, Figure, answers, client_for, local_server, paced  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

MACHINES, WORKERS = 8, 8
AT_ONCE, QUOTA, WINDOW = 25, 100, 6  # a plan's minute, in a tenth of the time
SECOND = 0.1  # of that time
SESSIONS, HOLD = 5, 0.5  # of each worker, and seconds for each
WORTH_COMPARING = 1.0  # seconds of waiting


def figures() -> Iterator[Figure]:
    """Time, answers of 429 and fairness of a plan that is shared by Redis."""
    from redis_servers import RealServer, find_program

    program = find_program("redis") or find_program("valkey")
    if program is None:
        yield Figure(f"{MACHINES} machines share a plan", "skipped: there is no server", "", "")
        return
    with tempfile.TemporaryDirectory() as base, RealServer(program, Path(base, "real")) as real:
        log = Path(base, "log")
        with local_server("--rate", f"{QUOTA}/{WINDOW}", "--cap", str(AT_ONCE), log=log) as env:
            waits = run_machines(Path(base), env, real.socket_url)
        posts, deletes = answers(log, "POST"), answers(log, "DELETE")
    created = [one for one in posts if one.status == 200]
    total = MACHINES * WORKERS * SESSIONS
    limit = max((total - 1) // QUOTA * WINDOW, total * HOLD / AT_ONCE)
    plan = f"{MACHINES} machines with {WORKERS} workers, {AT_ONCE} at once and {QUOTA} in {WINDOW} s allowed"
    yield from paced(plan, posts, total, limit)
    yield Figure(f"{plan}: most alive", str(most_alive(created, deletes)), f"{AT_ONCE} at most", "")
    yield Figure(
        f"{plan}: longest wait of one second's, against the median", f"{unfairness(waits):.2f}", "2 or less", ""
    )


def run_machines(folder: Path, env: dict[str, str], url: str) -> list[tuple[float, float]]:
    """Have all machines create their sessions; returns when each was asked for, and how long it took."""
    begin = time.time() + 3.0
    drivers = [
        subprocess.Popen(
            [sys.executable, __file__, json.dumps([str(folder / f"machine{number}"), env, url, begin])],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(MACHINES)
    ]
    waits: list[tuple[float, float]] = []
    for driver in drivers:
        out, _ = driver.communicate()
        waits += [(asked, took) for asked, took in json.loads(out)]
    return waits


def most_alive(created: list[Answer], deletes: list[Answer]) -> int:
    """The largest number of sessions that were alive at any time."""
    changes = [(one.moment, 1) for one in created] + [(one.moment, -1) for one in deletes if one.status == 200]
    alive = most = 0
    for _, change in sorted(changes):
        alive += change
        most = max(most, alive)
    return most


def unfairness(waits: list[tuple[float, float]]) -> float:
    """The longest wait of those that asked in the same second against their median, at worst."""
    by_second = defaultdict(list)
    for asked, took in waits:
        by_second[int(asked / SECOND)].append(took)
    medians = {second: statistics.median(them) for second, them in by_second.items()}
    return max((max(them) / medians[s] for s, them in by_second.items() if medians[s] > WORTH_COMPARING), default=0.0)


def drive(folder: str, env: dict[str, str], url: str, begin: float) -> list[tuple[float, float]]:
    """One machine: a run with its broker, and workers that create sessions, hold and end them."""
    from pytest_anchor.client import Client
    from pytest_anchor.session import AnchorSessionFactory

    main = client_for(env, Path(folder, ".pytest_anchor", os.urandom(8).hex()))
    settings = main.settings._replace(shared_limits=url, max_sessions=None, create_timeout=300.0, own_registry=False)
    waits: list[tuple[float, float]] = []

    def work(name: str) -> None:
        client: Any = Client(settings._replace(owner=name))
        create = AnchorSessionFactory(client, {}, lambda: f"test_of_{name}")
        for _ in range(SESSIONS):
            asked = time.time()
            session = create()
            waits.append((asked, time.time() - asked))
            time.sleep(HOLD)
            session.end()
        client.leave()

    time.sleep(max(begin - time.time(), 0.0))
    threads = [threading.Thread(target=work, args=(f"gw{number}",)) for number in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waits


if __name__ == "__main__":
    print(json.dumps(drive(*json.loads(sys.argv[1]))))
