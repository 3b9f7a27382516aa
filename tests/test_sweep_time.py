import threading
import time
from itertools import pairwise

import fault_server as fs
import pytest
from records import intend, lost, opened
from sweeps import Observer, swept

from pytest_anchor.cleanup import sweep as sweep_module
from pytest_anchor.cleanup.ending import TOO_LATE, end_sessions, per_session_deadlines
from pytest_anchor.cleanup.policy import SweepObserver, SweepPolicy
from pytest_anchor.settings import SWEEP_AT_ONCE


@pytest.mark.parametrize(("before", "tries", "told"), [(500, 4, 500), (401, 1, None)])  # that was of another key
def test_an_answer_before_an_end_that_is_cut_short_is_told(server, api, run, before, tries, told):
    opened(server, api, run, "inv-1")
    (record,) = run.read().records.values()
    server.fail("GET", fs.status(401))
    server.fail("DELETE", *[fs.status(before)] * tries)
    end_sessions(api, run, [record], policy=SweepPolicy(), deadline=time.monotonic() + 5)
    assert record.error["status"] == before
    server.fail_always("DELETE", fs.silent)
    deadline = time.monotonic() + 1.5  # half of it for the first try
    (error,) = end_sessions(api, run, [record], policy=SweepPolicy(), deadline=deadline, again=True).values()
    assert (error.status, error.is_transient) == (told, True)
    assert error.tries == server.count("DELETE")


@pytest.mark.parametrize(
    ("last", "seconds", "told"),
    [(fs.silent, 1, False), (fs.silent, 2.5, True), (fs.status(500), 1, True), (fs.reset, 1, True)],
)
def test_a_list_that_is_cut_short_does_not_undo_the_one_before(server, api, run, last, seconds, told):
    intend(run, "inv-1")  # it never turns up
    server.fail("GET", lambda _handler, act: act())
    server.fail_always("GET", last)
    problem, _ = swept(api, run, timeout=seconds, pauses=(0.1,), grace=60.0)
    assert server.count("GET") > 1
    assert bool(problem) == told


def test_a_list_of_long_ago_does_not_stand_in_for_one_that_is_cut_short(server, api, run, monkeypatch):
    monkeypatch.setattr(sweep_module, "RECENT", 0.05)
    intend(run, "inv-1")
    server.fail("GET", lambda _handler, act: act())
    server.fail_always("GET", fs.silent)
    problem, _ = swept(api, run, timeout=1, pauses=(0.1,), grace=60.0)
    assert problem


def test_those_that_hang_leave_time_for_the_others(server, api, run):
    ids = [opened(server, api, run, f"inv-{n}") for n in range(32)]
    hanging = ids[:12]
    server.fail_always("DELETE", fs.among(hanging, fs.silent))
    problem, took = swept(api, run, timeout=3, at_once=4, pauses=(0.1,))
    assert problem is None  # the list was read while there was time
    assert took < 8
    assert set(server.alive) == set(hanging)
    left = [record for record in run.read().records.values() if record.open]
    assert {record.id for record in left} == set(hanging)
    assert {record.error["message"] for record in left} <= {"no answer in time", TOO_LATE}
    assert all(record.error["tries"] for record in left)


def test_one_that_hangs_leaves_time_for_the_list(server, api, run):
    hanging = opened(server, api, run, "inv-1")
    found = lost(server, api, run, "inv-2")
    server.fail_always("DELETE", fs.on(hanging, fs.silent))
    swept(api, run, timeout=3)
    assert server.alive == [hanging]
    assert not server.sessions[found].alive


def test_what_failed_waits_for_what_was_found_since(server, api, run):
    failed = opened(server, api, run, "inv-1")
    found = lost(server, api, run, "inv-2")
    server.fail("DELETE", *[fs.status(500)] * 4)
    assert swept(api, run, at_once=1, pauses=(0.01,))[0] is None
    ended = [path.rpartition("/")[2] for method, path in server.requests if method == "DELETE"]
    assert ended == [*[failed] * 4, found, failed]


def test_a_system_without_threads_gets_no_more_time(server, api, run, monkeypatch):
    start = threading.Thread.start

    def start_or_fail(thread):
        if thread.name == "pytest-anchor-end":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    for n in range(5):
        opened(server, api, run, f"inv-{n}")
    assert swept(api, run)[0] is None
    assert server.alive == []
    for n in range(5, 45):
        opened(server, api, run, f"inv-{n}")
    server.fail_always("DELETE", fs.silent)
    server.requests.clear()
    swept(api, run, timeout=1)
    assert server.count("DELETE") <= 3  # each of them for half a second
    assert len(server.alive) == 40


def test_nothing_more_is_ended_once_it_is_interrupted(server, api, run):
    for n in range(40):
        opened(server, api, run, f"inv-{n}")
    records = list(run.read().records.values())
    server.fail_always("DELETE", fs.slow(0.05))

    class Interrupted(SweepObserver):
        def progress(self, *_):
            raise KeyboardInterrupt

    observer = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        end_sessions(
            api, run, records, policy=SweepPolicy(at_once=2), deadline=time.monotonic() + 20, observer=observer
        )
    begun = server.count("DELETE")
    time.sleep(0.4)
    assert server.count("DELETE") <= begun + 2


def test_a_list_that_hangs_leaves_time_for_another_try(server, api, run):
    opened(server, api, run, "inv-1")
    server.fail_always("GET", fs.silent)
    server.fail("DELETE", fs.body(b"", 500), *[fs.status(500)] * 3)
    swept(api, run, timeout=3, pauses=(0.1,))
    assert server.alive == []


@pytest.mark.parametrize(
    ("count", "again", "expected"),
    [
        (1, False, [10]),
        (16, False, [10] * 16),
        (32, False, [5, 10 * 16 / 31]),
        (1, True, [5]),
        (16, True, [5] * 16),
        (32, True, [5, 5]),
        (40, True, [4, 10 * 16 / 39]),
        (1600, True, [0.5] * 9),
    ],
)
def test_a_share_of_the_time(api, monkeypatch, count, again, expected):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    share = per_session_deadlines(api, count, 110.0, 16, again=again)
    assert [share() - 100 for _ in expected] == pytest.approx(expected)


def test_an_api_that_is_slow_for_all_gets_the_time_there_is(api, monkeypatch):
    share = per_session_deadlines(api, 128, 110.0, 16, again=True)
    for batch in range(8):
        now = 100 + batch * 0.9
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        assert min(share() for _ in range(16)) >= now + 0.9


def test_a_share_begins_after_the_pause_and_ends_in_time(api, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    api._caller.pause.until = 104.0
    assert per_session_deadlines(api, 1, 110.0, 16, again=True)() == 107.0
    assert per_session_deadlines(api, 99, 104.2, 16, again=True)() == 104.2
    assert per_session_deadlines(api, 1, 103.0, 16)() == 103.0


def test_how_many_at_once_is_an_option(server, api, run):
    for n in range(12):
        opened(server, api, run, f"inv-{n}")
    most = []

    def busy(_handler, act):
        most.append(server.busy)
        time.sleep(0.05)
        return act()

    server.fail_always("DELETE", busy)
    assert swept(api, run, at_once=3)[0] is None
    assert server.alive == []
    assert max(most) == 3


def test_it_tells_of_each_that_is_over(server, api, run):
    bad, *_ = [opened(server, api, run, f"inv-{n}") for n in range(3)]
    server.fail_always("DELETE", fs.on(bad, fs.status(403)))
    observer = Observer()
    swept(api, run, timeout=2, observer=observer)
    assert sorted(observer.over) == ["inv-1", "inv-2"]


def test_connections_are_kept_alive(server, api, run):
    for n in range(80):
        opened(server, api, run, f"inv-{n}")
    assert swept(api, run, timeout=60)[0] is None
    assert server.count("DELETE") == 80
    assert server.connections <= SWEEP_AT_ONCE


def test_so_are_many(server, api, run, caplog):
    for n in range(200):
        opened(server, api, run, f"inv-{n}")
    together = threading.Barrier(100)

    def end(_handler, act):
        together.wait(20)
        return act()

    server.fail_always("DELETE", end)
    assert swept(api, run, timeout=20, at_once=100)[0] is None
    assert server.alive == []
    assert server.connections == 100
    assert caplog.records == []  # urllib3 says so where it throws a connection away


def test_while_the_api_asks_to_wait_nothing_is_sent(server, api, run):
    for n in range(40):
        opened(server, api, run, f"inv-{n}")
    for method in ("DELETE", "GET"):
        server.fail_always(method, fs.status(429, Retry_After="30"))
    journal = run.folder / "journal.jsonl"
    size = len(journal.read_bytes().splitlines())
    problem, took = swept(api, run, timeout=20)
    assert len(server.requests) <= SWEEP_AT_ONCE
    assert problem.status == 429
    assert took < 12  # nothing can change any more
    left = run.read().records.values()
    assert all(record.open and record.error["status"] == 429 for record in left)
    assert len(journal.read_bytes().splitlines()) <= size + 40


def test_what_is_not_sent_during_a_pause_is_written_down_once(server, api, run):
    for n in range(3):
        opened(server, api, run, f"inv-{n}")
    records = list(run.read().records.values())
    api._caller.pause.extend(30)
    journal = run.folder / "journal.jsonl"
    sizes = []
    for _ in range(3):
        failures = end_sessions(api, run, records, policy=SweepPolicy("sweep"), deadline=time.monotonic() + 5)
        assert [(error.status, error.tries) for error in failures.values()] == [(429, 0)] * 3
        sizes.append(len(journal.read_bytes().splitlines()))
    assert sizes == [sizes[0]] * 3
    assert server.requests == []


def test_after_the_pause_a_sweep_goes_on(server, api, run):
    for n in range(40):
        opened(server, api, run, f"inv-{n}")
    server.fail_always("DELETE", fs.for_a_while(1.0, fs.status(429, Retry_After="1")))
    assert swept(api, run, timeout=20)[0] is None
    assert server.alive == []
    times = [when for when, (method, _) in zip(server.times, server.requests, strict=True) if method == "DELETE"]
    gap = max(later - earlier for earlier, later in pairwise(times))
    assert gap >= 0.7
    assert len(times) <= 40 + 2 * SWEEP_AT_ONCE
