"""What one admission costs with the limits in a file and on a server, at one broker and among many."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from measure import ROOT, Figure, ratio, seconds

from pytest_anchor.budget import rules
from pytest_anchor.budget.file_store import FileStore
from pytest_anchor.budget.leases import Member
from pytest_anchor.budget.redis_server import RedisServer
from pytest_anchor.budget.rules import Applicant
from pytest_anchor.budget.shared_store import SharedStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_anchor.budget.store import Store

sys.path.append(str(ROOT / "tests" / "many_machines"))

BROKERS = (1, 64)
PAUSE = 1.0  # seconds between two creations of each of the others
CAP = 500
ROUNDS = 200


def figures() -> Iterator[Figure]:
    """The turn of a creation and the end of its session: two changes of the state."""
    from redis_servers import RealServer, find_program

    program = find_program("redis") or find_program("valkey")
    with tempfile.TemporaryDirectory() as base, ExitStack() as stack:
        files = {count: _cost([_file(Path(base, f"f{count}"), number) for number in range(count)]) for count in BROKERS}
        name = f"an admission by a file, at {BROKERS[1]} brokers against 1"
        yield ratio(name, files[BROKERS[1]], files[1], "", "ms")
        if program is None:
            yield Figure("an admission by Redis", "skipped: there is no server", "", "")
            return
        real = stack.enter_context(RealServer(program, Path(base, "real")))
        for count in BROKERS:
            stores = [_shared(Path(base, f"s{count}"), real.url, count, number) for number in range(count)]
            cost = _cost(list(stores))
            bare = _round_trips(real.url, f"brokers{count}")
            for store in stores:
                store.close()
            name = f"an admission by Redis, at {count} broker{'s' if count > 1 else ''}, against its bare round trips"
            yield ratio(name, cost, bare, "", "ms")


def _file(folder: Path, number: int) -> FileStore:
    folder.mkdir(exist_ok=True)
    return FileStore(folder, "bench", f"run{number}", "main")


def _shared(folder: Path, url: str, count: int, number: int) -> SharedStore:
    folder.mkdir(exist_ok=True)
    member = Member(f"run{number}", "bench", "machine", "", 30.0)
    server = RedisServer(url, f"brokers{count}")
    return SharedStore(server, FileStore(folder, "bench", f"run{number}", ""), member, _sign)


def _sign(*words: str) -> str:
    return sha256("\n".join(words).encode()).hexdigest()[:32]


def _cost(stores: list[Store]) -> float:
    """The median seconds for an admission and a release, while the other brokers make theirs now and then."""
    with _others(stores[1:]):
        work = partial(_create, stores[0], "run0")
        work()
        return median(seconds(work) for _ in range(ROUNDS)) / 2


@contextmanager
def _others(stores: list[Store]) -> Iterator[None]:
    over = threading.Event()

    def create_now_and_then(store: Store, run: str) -> None:
        while not over.wait(PAUSE):
            _create(store, run)

    threads = [
        threading.Thread(target=create_now_and_then, args=(store, f"run{number + 1}"))
        for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()


def _create(store: Store, run: str) -> None:
    nonce = f"{run}-{os.urandom(8).hex()}"
    applicant = Applicant(nonce, nonce, 0, run, "main", "test", CAP, waited=0.0, remaining=60.0)
    decision = store.update(partial(rules.try_admit, applicant=applicant))
    assert decision.began is not None
    store.update(partial(rules.release_slots, nonces=[nonce]))


def _round_trips(url: str, key: str) -> float:
    """The median seconds of what one change asks of the server, with a value of that size."""
    server, key_of_bare = RedisServer(url, key), f"{key}-bare"
    value = server.read().value
    bare = RedisServer(url, key_of_bare)
    bare.replace(b"", value)

    def change() -> None:
        bare.replace(bare.read().value, value)

    work: Callable[[], None] = change
    work()
    return median(seconds(work) for _ in range(ROUNDS))
