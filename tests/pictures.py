"""Records of runs that never were, for tests that want their picture."""

from __future__ import annotations

import random
from typing import Any

from pytest_anchor.registry.records import State

BEGAN = 1_764_280_000.0  # seconds since the epoch
ERROR = {"status": None, "code": "", "message": "no answer", "remedy": "", "tries": 1}


class RecordedRun:
    """The record of a run; moments are in seconds since it began."""

    def __init__(self, **facts: Any) -> None:
        self.state = State()
        self.events: list[dict[str, Any]] = []
        self.nonces = 0
        self._apply("run", "", 0.0, **{"cap": 0, "prefetch": 0, "end_in_background": False, **facts})

    def ask(self, test: str, at: float, *, owner: str = "main", **fields: Any) -> str:
        """A creation that is begun; returns its nonce."""
        self.nonces += 1
        nonce = f"run-{self.nonces}"
        intent = {
            "owner": owner,
            "test": test,
            "base_url": "http://b",
            "fingerprint": "f",
            "run_id": "nightly-7",
            "folder_inode": 1,
        }
        self._apply("intent", nonce, at, **{**intent, **fields})
        return nonce

    def session(
        self,
        test: str,
        begun: float,
        created: float,
        ending: float | None = None,
        ended: float | None = None,
        *,
        ended_by: str = "teardown",
        **fields: Any,
    ) -> str:
        """A session, with what is known of its life; returns its nonce."""
        nonce = self.ask(test, begun, **fields)
        self.note("created", nonce, created, id=f"session-{self.nonces}", signature="s")
        if ended is not None:
            self.note(
                "ended",
                nonce,
                ended,
                ended_by=ended_by,
                already=False,
                began=BEGAN + (ended if ending is None else ending),
            )
        return nonce

    def waited(self, nonce: str, until: float, *, rate: float = 0.0, slot: float = 0.0, **policy: Any) -> None:
        self._apply("waited", nonce, until, rate=rate, slot=slot, **policy)

    def tested(
        self, test: str, began: float, ended: float, *nonces: str, outcome: str = "passed", rerun: int = 0
    ) -> None:
        for nonce in nonces:
            self.note(
                "tested",
                nonce,
                ended,
                test=test,
                began=BEGAN + began,
                ended=BEGAN + ended,
                outcome=outcome,
                rerun=rerun,
            )

    def note(self, event: str, nonce: str, at: float, **fields: Any) -> None:
        self._apply(event, nonce, at, **fields)

    def _apply(self, event: str, nonce: str, at: float, **fields: Any) -> None:
        self.events.append({"event": event, "nonce": nonce, "time": BEGAN + at, **fields})
        self.state.apply(self.events[-1])


def one_after_the_other(
    tests: int, *, work: float = 1.0, create: float = 1.0, end: float = 0.25, workers: int = 1, cap: int = 0
) -> RecordedRun:
    """Tests that each create a session, work, and end it."""
    run = RecordedRun(cap=cap)
    for worker in range(workers):
        now = 0.0
        for number in range(worker, tests, workers):
            test, owner = f"test_it.py::test[{number}]", f"gw{worker}" if workers > 1 else "main"
            ending = now + create + work
            nonce = run.session(test, now, now + create, ending, ending + end, owner=owner)
            run.tested(test, now, ending + end, nonce)
            now = ending + end
    return run


def busy(tests: int, workers: int, *, cap: int = 12, seed: int = 7, folder: str = "tests/") -> RecordedRun:
    """A run in which all kinds of things happened."""
    chance = random.Random(seed)
    run = RecordedRun(cap=cap)
    clocks = [chance.uniform(0.4, 1.2) for _ in range(workers)]
    areas = ["cart", "checkout", "search", "login", "account", "orders"]
    for number in range(tests):
        worker = min(range(workers), key=clocks.__getitem__)
        owner, now = (f"gw{worker}" if workers > 1 else "main"), clocks[worker]
        area = chance.choice(areas)
        test = f"{folder}test_{area}.py::test_{chance.choice(['adds', 'removes', 'shows', 'keeps', 'asks'])}_{area}_{number}"
        begun = now + 0.05
        if chance.random() < 0.2:
            wait = chance.uniform(0.5, 4.0)
            begun += wait
        create = chance.uniform(0.8, 2.2)
        retried = 0
        if chance.random() < 0.06:
            lost = run.ask(test, begun, owner=owner)
            run.note("lost", lost, begun + 3.0, error=ERROR)
            run.note("created", lost, begun + 4.0, id=f"found-{number}", signature="s")
            run.note("ended", lost, begun + 4.6, ended_by="sweep", already=False, began=BEGAN + begun + 4.2)
            begun, retried = begun + 3.3, 1
        created = begun + create
        work = chance.choice([chance.uniform(1, 4), chance.uniform(2, 9)])
        ending = created + work
        ended = ending + chance.uniform(0.2, 0.6)
        outcome = chance.choices(["passed", "failed", "error", "skipped", "xfailed"], [90, 5, 1, 2, 2])[0]
        ended_by = "sweep" if chance.random() < 0.02 else "teardown"
        if ended_by == "sweep":
            ending, ended = ending + 6, ended + 6
        nonce = run.session(test, begun, created, ending, ended, owner=owner, ended_by=ended_by, retried=retried)
        if begun - now > 0.4 and not retried:
            run.waited(nonce, begun, **{chance.choice(["rate", "slot"]): begun - now - 0.05}, quota=60, window=10.0)
        over = ended if ended_by == "teardown" else created + work
        run.tested(test, now, over, nonce, outcome=outcome)
        clocks[worker] = over + chance.uniform(0.02, 0.3)
    return run
