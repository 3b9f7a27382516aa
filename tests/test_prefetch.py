"""What is created ahead, by hand: what is made, handed out, kept and ended."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from pytest_anchor.broker import prefetch as prefetch_module
from pytest_anchor.broker.prefetch import Prefetch, _age
from pytest_anchor.configuration import Wanted
from pytest_anchor.errors import AnchorError

BUSY = 10.0  # seconds by which a machine with much to do may be late


def wanted(*tests: str, **config: object) -> list[Wanted]:
    return [Wanted(test, config) for test in tests]


class Bench:
    """A prefetch whose creations wait at a gate; what it makes are the names of the tests that it is for."""

    def __init__(self, at_most: int) -> None:
        self.begun: list[str] = []
        self.made: list[str] = []
        self.ended: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.crowded: Callable[[], bool] = lambda: False
        self.outcome: Exception | None = None
        self.refuses = False
        self.prefetch = Prefetch(at_most, self._create, self.ended.append, self._is_crowded)

    def _create(self, one: Wanted) -> str | None:
        self.begun.append(one.test)
        assert self.gate.wait(30)
        if self.outcome is not None:
            raise self.outcome
        self.made.append(one.test)
        return None if self.refuses else one.test

    def _is_crowded(self) -> bool:
        return self.crowded()

    def wait(self) -> None:
        """Wait until nothing is under way."""
        assert self.prefetch._creations.wait(30)

    def close(self) -> None:
        self.gate.set()
        self.prefetch.close(30)


@pytest.fixture
def bench():
    benches = []

    def bench(at_most: int = 2) -> Bench:
        benches.append(Bench(at_most))
        return benches[-1]

    yield bench
    for one in benches:
        one.close()


def test_what_comes_next_is_made_and_handed_out_once(bench):
    one = bench()
    one.prefetch.plan(None, wanted("a", "b", "c"))
    one.wait()
    assert sorted(one.begun) == ["a", "b"], "more than asked for, or not the next"
    assert sorted([one.prefetch.take({}), one.prefetch.take({})]) == ["a", "b"]
    assert one.prefetch.take({}) is None
    one.close()
    assert not one.ended


def test_what_is_under_way_is_waited_for_and_stays(bench, until):
    one, got = bench(), []
    one.gate.clear()
    one.prefetch.plan(None, wanted("a"))
    until(lambda: one.begun)
    taker = threading.Thread(target=lambda: got.append(one.prefetch.take({})))
    taker.start()
    until(lambda: not one.prefetch._ahead)
    one.prefetch.plan(None, [])
    one.prefetch.drop_ready()
    one.gate.set()
    taker.join(BUSY)
    one.close()
    assert got == ["a"]
    assert not one.ended, "a session was ended under its test"


def test_what_is_ready_goes_before_what_is_under_way(bench, until):
    one = bench()
    one.prefetch.plan(None, wanted("a"))
    one.wait()
    one.gate.clear()
    one.prefetch._ahead.insert(0, one.prefetch._ahead.pop())
    one.prefetch.plan(None, wanted("a", "b"))
    until(lambda: len(one.begun) == 2)
    one.prefetch._ahead.reverse()
    assert one.prefetch.take({}) == "a"


@pytest.mark.parametrize("config", [{"browser": {"x": 1}}, {"session": {"timeout": {"idle_timeout": 0}}}, {"x": {1}}])
def test_nothing_begins_before_a_test_has_its_own(bench, config):
    one = bench()
    one.prefetch.plan(*wanted("now", **config), wanted("a"))
    one.wait()
    assert not one.begun
    one.prefetch.plan(None, wanted("a"))
    one.wait()
    assert one.begun == ["a"]


def test_a_test_whose_own_is_ready_lets_others_begin(bench):
    one = bench()
    one.prefetch.plan(None, wanted("now"))
    one.wait()
    one.prefetch.plan(*wanted("now"), wanted("a", "b", "c"))
    one.wait()
    assert sorted(one.begun) == ["a", "b", "now"]
    assert not one.ended


def test_what_nobody_will_ask_for_is_ended_once(bench, until):
    one = bench(1)
    one.prefetch.plan(None, wanted("a"))
    one.wait()
    one.gate.clear()
    one.prefetch.plan(None, wanted("b", x=1))
    assert one.ended == ["a"]
    until(lambda: len(one.begun) == 2)
    one.prefetch.plan(None, wanted("c", x=2))
    one.prefetch.plan(None, [])
    one.gate.set()
    until(lambda: len(one.ended) == 2)
    one.close()
    assert one.ended == ["a", "b"], "what was under way is ended when it is there, and once"


def test_what_has_not_begun_is_not_waited_for(bench, until):
    one = bench(1)
    one.gate.clear()
    one.prefetch.plan(None, wanted("a"))
    until(lambda: one.begun)
    one.prefetch.plan(None, wanted("b", x=1))
    start = time.monotonic()
    assert one.prefetch.take({"x": 1}) is None
    assert time.monotonic() - start < BUSY
    one.close()
    assert one.begun == one.ended == ["a"], "what the test has made itself was made once more"


def test_ctrl_c_while_a_test_waits(bench, until):
    one = bench()
    one.gate.clear()
    one.prefetch.plan(None, wanted("a"))
    until(lambda: one.begun)
    main = threading.get_ident()

    def interrupt():
        until(lambda: not one.prefetch._ahead)  # it has been taken
        time.sleep(0.2)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        one.prefetch.take({})
    one.gate.set()
    until(lambda: one.ended)
    one.close()
    assert one.ended == ["a"]


def test_what_hangs_is_not_waited_for_for_ever(bench, until, monkeypatch):
    monkeypatch.setattr(prefetch_module, "PATIENCE", 0.3)
    one = bench()
    one.gate.clear()
    one.prefetch.plan(None, wanted("a"))
    until(lambda: one.begun)
    assert one.prefetch.take({}) is None
    one.gate.set()
    until(lambda: one.ended == ["a"])


def test_who_learns_that_creations_take_long_waits_longer(bench, until, monkeypatch):
    monkeypatch.setattr(prefetch_module, "PATIENCE", 0.1)
    one = bench()
    for name in ("slow", "a"):
        one.gate.clear()
        one.prefetch.plan(None, wanted(name))
        until(lambda name=name: name in one.begun)
        threading.Timer(1.0 if name == "slow" else 0.3, one.gate.set).start()
        if name == "slow":
            one.wait()
            one.prefetch.plan(None, [])
    assert one.prefetch.take({}) == "a"


def timeouts(**minutes: object) -> dict[str, object]:
    return {"session": {"timeout": minutes}}


LOOP: dict[str, object] = {}
LOOP["x"] = LOOP


@pytest.mark.parametrize(
    "config",
    [
        timeouts(idle_timeout=0.1),
        timeouts(max_duration=0.5),
        timeouts(idle_timeout="5"),
        timeouts(idle_timeout=None),
        timeouts(max_duration=float("nan")),
        timeouts(max_duration=float("inf")),
        timeouts(max_duration=10**400),
        {"browser": {"profile": {"name": "p", "persist": True}}},
        {"session": {"x": b"bytes"}},
        {"session": {1: 1, "1": 1}},
        LOOP,
    ],
    ids=lambda config: repr(config)[:40],
)
def test_what_cannot_be_kept_or_told_apart_is_not_made_ahead(bench, config):
    one = bench()
    one.prefetch.plan(Wanted("now", config), [Wanted("a", config)])
    one.prefetch.plan(None, [Wanted("a", config)])
    one.wait()
    assert not one.begun
    assert one.prefetch.take(config) is None


@pytest.mark.parametrize(
    ("config", "seconds"),
    [
        ({}, 120),
        ({"session": None, "browser": None}, 120),
        (timeouts(), 120),
        (timeouts(idle_timeout=-1, max_duration=-1), 120),
        (timeouts(idle_timeout=1), 30),
        (timeouts(max_duration=1), 6),
        (timeouts(max_duration=10, idle_timeout=2), 60),
    ],
)
def test_how_long_a_session_may_wait_for_its_test(config, seconds):
    assert _age(config) == seconds


def test_what_is_too_old_is_ended_and_another_made(bench, until, monkeypatch):
    monkeypatch.setattr(prefetch_module, "MAX_AGE", 0.1)
    monkeypatch.setattr(prefetch_module, "LEAST_AGE", 0.0)
    one = bench()
    one.prefetch.plan(None, wanted("a"))
    until(lambda: one.ended == ["a"])
    assert one.prefetch.take({}) is None
    one.prefetch.plan(None, wanted("b"))
    until(lambda: one.ended == ["a", "b"])


def test_what_grew_old_while_the_process_was_stopped_is_not_handed_out(bench):
    one, awake = bench(), threading.Event()
    one.crowded = lambda: not awake.wait(30)
    one.prefetch.plan(None, wanted("a"))
    one.wait()
    one.prefetch._ahead[0].good_until = time.monotonic() - 1
    assert one.prefetch.take({}) is None
    awake.set()
    assert one.ended == ["a"]


def test_what_is_ready_makes_room_for_who_waits(bench, until):
    one = bench()
    one.prefetch.plan(None, wanted("a", "b"))
    one.wait()
    one.prefetch.drop_ready()
    assert sorted(one.ended) == ["a", "b"]
    one.prefetch.plan(None, wanted("c"))
    one.wait()
    one.crowded = lambda: True
    until(lambda: "c" in one.ended)
    assert one.prefetch.take({}) is None


def test_what_failed_is_not_tried_again_and_what_was_not_possible_is(bench):
    one = bench()
    one.outcome = AnchorError("no")
    for _ in range(3):
        one.prefetch.plan(None, wanted("a", "a"))
        one.wait()
    assert 1 <= len(one.begun) <= 2
    one.outcome, one.refuses = None, True
    del one.begun[:]
    for _ in range(3):
        one.prefetch.plan(None, wanted("b", x=1))
        one.wait()
    assert one.begun == ["b"] * 3
    assert one.prefetch.take({"x": 1}) is None
    assert not one.ended


def test_an_expectation_that_is_wrong_again_and_again_is_given_up(bench):
    one = bench(1)

    def passes(asks_for: dict[str, object]) -> int:
        before = len(one.begun)
        one.prefetch.plan(*wanted("now"), wanted("next"))
        one.prefetch.take(asks_for)
        one.prefetch.plan(None, wanted("next"))
        one.wait()
        return len(one.begun) - before

    for _ in range(3):  # one that was right makes up for one that was wrong
        passes({})
        passes({"browser": {"x": 1}})
    assert one.prefetch._ahead
    passes({"browser": {"x": 1}})
    assert passes({"browser": {"x": 1}}) == 0
    assert not one.prefetch._ahead
    passes({})
    assert passes({}) == 1


def test_closing_ends_what_is_left_and_waits_for_what_is_under_way(bench, until):
    one = bench()
    one.prefetch.plan(None, wanted("a"))
    one.wait()
    one.gate.clear()
    one.prefetch.plan(None, wanted("a", "b"))
    until(lambda: len(one.begun) == 2)
    threading.Timer(0.3, one.gate.set).start()
    one.prefetch.close(30)
    assert sorted(one.ended) == ["a", "b"]
    one.prefetch.plan(None, wanted("c"))
    one.wait()
    assert len(one.begun) == 2
    assert one.prefetch.take({}) is None


def test_closing_has_an_end(bench, until):
    one = bench()
    one.gate.clear()
    one.prefetch.plan(None, wanted("a"))
    until(lambda: one.begun)
    start = time.monotonic()
    one.prefetch.close(0.2)
    assert 0.1 < time.monotonic() - start < BUSY
    assert not one.ended
    one.gate.set()
    until(lambda: one.ended == ["a"])


def test_a_test_does_not_create_ahead_itself_where_no_thread_can_be_started(bench, monkeypatch):
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    one = bench()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        one.prefetch.plan(None, wanted("a", "b"))
    assert not one.begun
    assert one.prefetch.take({}) is None
    one.prefetch.plan(None, wanted("c"))
    one.wait()
    assert one.prefetch.take({}) == "c"


def test_many_threads_neither_share_nor_lose_one(bench):
    made, ended, taken, names = [], [], [], iter(range(10**6))
    lock, begun = threading.Lock(), time.monotonic()

    def create(_one: Wanted) -> int | None:
        time.sleep(random.random() * 0.003)
        if random.random() < 0.1:
            return None
        with lock:
            made.append(next(names))
            return made[-1]

    prefetch = Prefetch(6, create, ended.append, lambda: random.random() < 0.2)

    def work(acts: list[Callable[[], object]]) -> None:
        # For a second; on a busy machine until enough has come of it.
        while (lasted := time.monotonic() - begun) < 1 or (min(len(taken), len(ended)) <= 10 and lasted < 30):
            random.choice(acts)()

    def take() -> None:
        if (one := prefetch.take({"x": random.randrange(2)})) is not None:
            taken.append(one)

    def plan() -> None:
        prefetch.plan(None, [Wanted("t", {"x": random.randrange(2)}) for _ in range(random.randrange(7))])

    acts: list[Callable[[], object]] = [plan, plan, take, take, prefetch.drop_ready]
    threads = [threading.Thread(target=partial(work, acts)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    prefetch.close(30)
    assert len(taken) > 10
    assert len(ended) > 10
    assert sorted(taken + ended) == made
