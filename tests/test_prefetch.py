"""What is created ahead: by hand, by an owner against a server, and as whole runs expect it of their tests."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial

import fault_server as faults
import pytest
from fault_server import FaultServer

from pytest_anchor import prefetch as prefetch_module
from pytest_anchor import session as session_module
from pytest_anchor.errors import AnchorError, AnchorLimitError
from pytest_anchor.plugin import _KEY
from pytest_anchor.prefetch import Prefetch, Wanted, _age
from pytest_anchor.registry import Record, Run
from pytest_anchor.session import Owner

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


def test_a_forked_child_has_no_part_in_it(bench):
    one = bench()
    one.prefetch.plan(None, wanted("a"))
    one.wait()
    with one.prefetch._changed:  # held by nobody in the child, and yet not free
        child = os.fork()
        if not child:
            done = []

            def use() -> None:
                one.prefetch.plan(None, [])
                one.prefetch.drop_ready()
                done.append(one.prefetch.take({}) is None)
                one.prefetch.close(5)

            thread = threading.Thread(target=use, daemon=True)
            thread.start()
            thread.join(BUSY)
            os._exit(0 if done == [True] and not thread.is_alive() and not one.ended else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert one.prefetch.take({}) == "a"


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
        coming = [Wanted("t", {"x": random.randrange(2)}) for _ in range(random.randrange(7))]
        prefetch.plan(None, coming)

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


# an owner's


@pytest.fixture
def owners(settings, quick):
    owners = []

    def owner(name: str = "main", *, prefetch: int = 1, cap: int | None = None) -> Owner:
        one = Owner(settings._replace(owner=name, prefetch=prefetch, max_sessions=cap))
        owners.append(one)
        return one

    yield owner
    for one in owners:
        one.close()


def records(owner: Owner) -> list[Record]:
    return list(Run(owner.settings.folder, "reader").read().records.values())


def ahead(owner: Owner, *coming: Wanted) -> None:
    """Have *owner* create for *coming*, and wait for that."""
    owner.plan(None, coming)
    assert owner._prefetch is not None
    assert owner._prefetch._creations.wait(30)


def test_nothing_is_created_ahead_of_the_first(server, owners):
    owner = owners()
    owner.plan(None, wanted("b"))
    assert owner._prefetch is None
    assert not server.requests


def test_the_record_tells_for_whom_it_was_made_and_who_has_it(server, owners):
    owner = owners(prefetch=2)
    first = owner.create({}, "a")
    ahead(owner, *wanted("b", "c"))
    assert {(one.test, one.ahead) for one in records(owner)} == {("a", False), ("b", True), ("c", True)}
    taken = owner.create({}, "other")
    assert taken.id != first.id
    (mine,) = (one for one in records(owner) if one.id == taken.id)
    assert (mine.test, mine.ahead, mine.state) == ("other", False, "open")
    owner.finish(30)
    assert sorted(server.alive) == sorted([first.id, taken.id])
    (unused,) = (one for one in records(owner) if one.state == "ended")
    assert unused.ahead
    assert server.count("POST") == 3
    assert server.count("DELETE") == 1


@pytest.mark.parametrize("status", [400, 401, 402, 403])
def test_a_refusal_ahead_is_the_end_of_it_and_no_tests(server, owners, status):
    owner = owners()
    owner.create({}, "a")
    server.fail("POST", faults.status(status))
    for test in ("b", "c"):
        ahead(owner, *wanted(test))
        owner.create({}, test)
    assert server.count("POST") == 4
    assert len(server.alive) == 3
    assert [one.state for one in records(owner) if one.ahead] == ["refused"]


def test_a_429_ahead_is_obeyed_and_neither_repeated_nor_raised(server, owners):
    owner = owners()
    owner.create({}, "a")
    server.fail_always("POST", faults.status(429, Retry_After="30", RateLimit_Policy='"1";q=1;w=30'))
    for _ in range(5):
        ahead(owner, *wanted("b"))
    assert server.count("POST") == 2


@pytest.mark.parametrize("lost", [faults.lost_reset, faults.status(500), faults.body(b"\xff<"), faults.reset])
def test_what_was_lost_ahead_is_on_record_as_such(server, owners, lost):
    owner = owners()
    owner.create({}, "a")
    server.fail("POST", lost)
    for test in ("b", "c"):
        ahead(owner, *wanted(test))
        owner.create({}, test)
    assert [(one.state, one.test) for one in records(owner) if one.ahead] == [("lost", "b")]
    assert server.count("POST") == 4


def test_what_a_test_has_taken_counts_as_its_own(owners):
    owner = owners(cap=2)
    owner.create({}, "a")
    ahead(owner, *wanted("b"))
    owner.create({}, "b")
    start = time.monotonic()
    with pytest.raises(AnchorLimitError, match="holds all 2 of them"):
        owner.create({}, "b")
    assert time.monotonic() - start < BUSY


def test_another_owner_does_not_wait_for_what_nobody_has_taken(server, owners):
    one, other = owners("gw0", cap=2), owners("gw1", cap=2)
    one.create({}, "a")
    ahead(one, *wanted("b"))
    assert len(server.alive) == 2
    start = time.monotonic()
    other.create({}, "c")
    assert time.monotonic() - start < BUSY
    assert len(server.alive) == 2
    ahead(one, *wanted("b"))
    assert server.count("POST") == 3, "there is no slot for it"


def test_a_test_does_not_wait_for_what_is_kept_for_the_next(server, owners):
    owner = owners(cap=2, prefetch=2)
    owner.create({}, "a")
    server.fail("POST", faults.slow(0.3))
    owner.plan(None, wanted("b"))
    start = time.monotonic()
    owner.create({"browser": {"x": 1}}, "a")
    assert time.monotonic() - start < BUSY
    assert len(server.alive) == 2


def test_ends_that_were_not_begun_in_time_are_the_sweeps(server, owners, until, monkeypatch):
    monkeypatch.setattr(session_module, "ENDS_AT_ONCE", 1)
    owner = owners()
    server.held["DELETE"] = threading.Event()
    owner.end_later([owner.create({}, test) for test in "abc"])
    until(lambda: server.count("DELETE") == 1)
    start = time.monotonic()
    owner.finish(0.2)
    assert 0.1 < time.monotonic() - start < BUSY
    owner.close()
    server.held["DELETE"].set()
    until(lambda: not server.busy)
    assert owner._ends is not None
    assert owner._ends.wait(30)
    assert server.count("DELETE") == 1
    assert len(server.alive) == 2
    assert not owner.settings.folder.joinpath("main.owner").exists() or owner._run is None


# what whole runs expect of their tests


class Spy:
    """Waits before and after each test until all that is created ahead is there; counts what was handed out."""

    def __init__(self) -> None:
        self.taken = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item):
        self.wait(item)
        yield
        self.wait(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item):
        yield
        self.wait(item)

    def wait(self, item: pytest.Item):
        plugin = item.config.stash[_KEY]
        prefetch = plugin.owner._prefetch if plugin.used else None
        deadline = time.monotonic() + BUSY
        while prefetch is not None and not all(one.done for one in prefetch._ahead):
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def predict(pytester: pytest.Pytester, server: FaultServer, monkeypatch: pytest.MonkeyPatch):
    """Run files of tests with ``--anchor-prefetch=2``; count the created, the handed out and the unused."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)

    def predict(files: dict[str, str], *args: str) -> tuple[int, int, int]:
        spy = Spy()
        give = Owner._give

        def count(*given):
            spy.taken += 1
            give(*given)

        monkeypatch.setattr(Owner, "_give", count)
        for name, text in files.items():
            path = pytester.path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"import pytest\n{text}")
        options = ["-p", "pytest_anchor", "-o", "anchor_reaper=off", "--anchor-prefetch=2", "--import-mode=importlib"]
        strict = ["-W", "error", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        result = pytester.runpytest_inprocess(*options, *strict, *args, plugins=[spy])
        assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
        assert not server.alive
        assert server.count("DELETE") == len(server.sessions), "one was ended twice, or not asked to end"
        section = result.stdout.str().partition(" anchor ====")[2]
        numbers = [word for word in section.split(",") if "prefetched" in word]
        unused = int(numbers[0].split()[-2]) if numbers else 0
        created = server.count("POST")
        assert f"{created} sessions created: " in section
        return created, spy.taken, unused

    return predict


def cases(names: str, body: str = "anchor_session()", fixtures: str = "anchor_session") -> str:
    return "".join(f"def test_{name}({fixtures}): {body}\n" for name in names)


DEFAULTS = "@pytest.fixture(scope='{0}')\ndef anchor_session_defaults({2}): return {{'browser': {{'x': {1}}}}}\n"
OTHER_CALL = "anchor_session(browser={'y': 1})"


@pytest.mark.parametrize(
    ("files", "args", "counts"),
    [
        ({"test_a.py": cases("abcd")}, "", (4, 3, 0)),
        ({"test_a.py": cases("a") + "@pytest.mark.anchor(browser={'x': 1})\n" + cases("bcd")}, "", (4, 3, 0)),
        (
            {
                "test_a.py": cases("ab"),
                "test_b.py": "pytestmark = pytest.mark.anchor(browser={'x': 1})\n" + cases("abc"),
            },
            "",
            (5, 4, 0),
        ),
        (
            {
                "test_a.py": "@pytest.fixture\ndef page(anchor_session): return anchor_session()\n"
                + cases("abc", "pass", "page")
            },
            "",
            (3, 2, 0),
        ),
        (
            {
                "a/conftest.py": DEFAULTS.format("session", 1, ""),
                "a/test_a.py": cases("abc"),
                "b/conftest.py": DEFAULTS.format("session", 2, ""),
                "b/test_b.py": cases("abc"),
            },
            "",
            (6, 4, 0),
        ),
        (
            {
                "conftest.py": DEFAULTS.format("module", "request.module.X", "request"),
                "test_a.py": "X = 1\n" + cases("abc"),
                "test_b.py": "X = 2\n" + cases("abc"),
            },
            "",
            (6, 4, 0),
        ),
        ({"conftest.py": DEFAULTS.format("function", 1, ""), "test_a.py": cases("abc")}, "", (3, 0, 0)),
        ({"conftest.py": DEFAULTS.format("class", 1, ""), "test_a.py": cases("abc")}, "", (3, 0, 0)),
        (
            {
                "conftest.py": DEFAULTS.format("session", "request.param", "request").replace(
                    "scope=", "params=[1, 2], scope="
                ),
                "test_a.py": cases("ab"),
            },
            "",
            (4, 0, 0),
        ),
        (
            {
                "conftest.py": "@pytest.fixture(scope='session', params=[1, 2])\ndef region(request): return request.param\n"
                + DEFAULTS.format("session", "region", "region"),
                "test_a.py": cases("ab"),
            },
            "",
            (4, 0, 0),
        ),
        (
            {
                "test_a.py": cases("a")
                + "".join(
                    f"@pytest.mark.{mark}\n{cases(name)}"
                    for name, mark in zip(
                        "bcdefg",
                        [
                            "skip",
                            "skipif(True, reason='')",
                            "skipif(condition=1, reason='')",
                            "skipif(False, True, reason='')",
                            "xfail(run=False)",
                            "xfail(True, reason='', run=False)",
                        ],
                        strict=True,
                    )
                )
                + cases("h")
            },
            "",
            (2, 1, 0),
        ),
        (
            {
                "test_a.py": cases("a")
                + "@pytest.mark.xfail(False, reason='', run=False)\n"
                + cases("b")
                + "@pytest.mark.skipif(False, reason='')\n"
                + cases("c")
            },
            "",
            (3, 2, 0),
        ),
        ({"test_a.py": cases("abcdef")}, "-k=test_b or test_e", (2, 1, 0)),
        ({"test_a.py": cases("a") + cases("b", "anchor_session(); assert 0") + cases("cd")}, "-x", (4, 1, 2)),
        ({"test_a.py": cases("ab", "anchor_session(), anchor_session()")}, "", (4, None, 0)),
        ({"test_a.py": cases("a") + cases("b", "pass") + cases("c")}, "", (3, 1, 1)),
        ({"test_a.py": cases("a") + cases("b", "pass", "") * 3 + cases("c")}, "", (2, 1, 0)),
        ({"test_a.py": cases("ab", "request.getfixturevalue('anchor_session')()", "request")}, "", (2, 0, 0)),
        ({"test_a.py": cases("abcdefgh", OTHER_CALL)}, "", (12, 0, 4)),
        (
            {"test_a.py": cases("a") + "@pytest.mark.anchor(browser={'x': {1}})\n" + cases("b") + cases("c")},
            "",
            (2, 1, 0),
        ),
        (
            {
                "test_a.py": "d = {}\nd['x'] = d\n"
                + cases("a")
                + "@pytest.mark.anchor(browser=d)\n"
                + cases("b")
                + cases("c")
            },
            "",
            (2, 1, 0),
        ),
        (
            {
                "test_a.py": cases("a")
                + "class Odd:\n    def __bool__(self): raise OSError\n@pytest.mark.skipif(Odd(), reason='')\n"
                + cases("b")
                + cases("c")
            },
            "",
            (2, 1, 0),
        ),
        (
            {
                "conftest.py": DEFAULTS.format("session", 1, "")
                .replace("browser", "session")
                .replace("'x': 1", "'timeout': {'max_duration': 10 ** 400}"),
                "test_a.py": cases("ab"),
            },
            "",
            (2, 0, 0),
        ),
        (
            {"conftest.py": "def pytest_collection_modifyitems(items): items.reverse()", "test_a.py": cases("abcd")},
            "",
            (4, 3, 0),
        ),
        (
            {
                "conftest.py": "@pytest.hookimpl(tryfirst=True)\ndef pytest_runtestloop(session):\n    order = session.items[::-1]\n    for item, after in zip(order, [*order[1:], None]):\n        item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)\n    return True",
                "test_a.py": cases("abcd"),
            },
            "",
            (4, 3, 0),
        ),
        ({"test_a.py": cases("abc", "module_anchor_session()", "module_anchor_session") + cases("de")}, "", (5, 1, 0)),
        (
            {
                "test_a.py": "@pytest.fixture\ndef page(anchor_session): return anchor_session()\n"
                + cases("abc", "pass", "page")
            },
            "--setup-only",
            (3, 2, 0),
        ),
    ],
    ids=[
        "equal",
        "marker",
        "module marker",
        "fixture",
        "folders",
        "by module",
        "function",
        "class",
        "parametrised",
        "depends",
        "skipped",
        "not skipped",
        "deselected",
        "-x",
        "two",
        "no call",
        "between",
        "dynamic",
        "other call",
        "no JSON",
        "loop",
        "odd condition",
        "overflow",
        "reversed",
        "backwards",
        "wider",
        "setup-only",
    ],
)
def test_what_is_expected(predict, files, args, counts):
    created, taken, unused = predict(files, *[args] * bool(args))
    assert (created, taken if counts[1] is not None else None, unused) == counts
