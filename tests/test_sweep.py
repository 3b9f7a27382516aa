import resource
import signal
import threading
import time
from contextlib import contextmanager
from itertools import pairwise

import fault_server as fs
import pytest
from fault_server import KEY
from processes import read_line, script
from records import ERROR, intend, intend_with, lost, opened, tags

from pytest_anchor import sweep
from pytest_anchor.api import AnchorAPI
from pytest_anchor.registry import Run
from pytest_anchor.sweep import adopt_listed, end_session, end_sessions, sweep_owner, sweep_run, write_off
from pytest_anchor.tags import TAG, new_tag, run_tag


def swept(api, run, timeout=5.0, **more):
    before = time.monotonic()
    problem = sweep_run(api, run, "r1", timeout=timeout, **more)
    return problem, time.monotonic() - before


def states(run):
    return {nonce: record.state for nonce, record in run.read().records.items()}


def test_a_run_that_created_nothing_asks_nothing(server, api, run):
    intend(run, "inv-1")
    run.append("refused", "inv-1")
    assert swept(api, run)[0] is None
    assert server.requests == []


def test_everything_of_the_run_is_ended_and_nothing_else(server, api, run):
    for n in range(20):
        opened(server, api, run, f"inv-{n}")
    strangers = [
        server.add(),
        server.add(TAG),
        server.add(TAG, run_tag("r2"), new_tag("inv-99")),
        server.add(TAG, run_tag("r1"), new_tag("other-1")),  # another invocation that shares the run id
        server.add(TAG, run_tag("r1")),
    ]
    said = []
    assert swept(api, run, progress=lambda *now: said.append(now))[0] is None
    assert server.alive == strangers
    assert set(states(run).values()) == {"ended"}
    assert {record.how for record in run.state.records.values()} == {"sweep"}
    assert (20, 20) in said
    assert {path for method, path in server.requests if method == "DELETE"}.isdisjoint(
        f"/v1/sessions/{one}" for one in strangers
    )


def test_a_list_that_ignores_the_filter_ends_no_strangers(server, api, run):
    opened(server, api, run, "inv-1")
    found = server.add(*tags("inv-2"))
    stranger, other = server.add("theirs"), server.add(*tags("other-1"))

    def unfiltered(handler, act):
        handler.path = handler.path.partition("?")[0]
        items = [{"session_id": s.id, "status": "running", "tags": s.tags} for s in server.sessions.values() if s.alive]
        return fs.ok({"items": items})

    server.fail_always("GET", unfiltered)
    swept(api, run)
    assert server.alive == [stranger, other]
    assert not server.sessions[found].alive


def test_ending_goes_on_in_parallel(server, api, run):
    for n in range(sweep.AT_ONCE):
        opened(server, api, run, f"inv-{n}")
    together = threading.Barrier(sweep.AT_ONCE)

    def wait_for_all(_handler, act):
        together.wait(10)  # fails if any of them waits for another
        return act()

    server.fail_always("DELETE", wait_for_all)
    assert swept(api, run, timeout=20)[0] is None
    assert server.alive == []
    assert server.count("DELETE") == sweep.AT_ONCE


def test_passing_trouble_is_outlasted(server, api, run):
    opened(server, api, run, "inv-1")
    server.fail("DELETE", *[fs.status(500)] * 9)
    assert swept(api, run, pauses=(0.01,))[0] is None
    assert server.alive == []
    assert server.count("DELETE") == 10


def test_tries_add_up(server, api, run):
    opened(server, api, run, "inv-1")
    run.append("failed", "inv-1", error=ERROR)
    server.fail_always("DELETE", fs.status(500))
    swept(api, run, pauses=(0.01, 60))
    assert run.state.records["inv-1"].error["tries"] == 7 + server.count("DELETE") == 15


def test_tries_add_up_when_time_is_up(server, api, run):
    for n in (1, 2):
        opened(server, api, run, f"inv-{n}")
        run.append("failed", f"inv-{n}", error=ERROR)
    server.fail_always("DELETE", fs.silent)
    records = list(run.read().records.values())
    failures = end_sessions(api, run, records, how="sweep", deadline=time.monotonic() + 0.2)
    tries = [error.tries for error in failures.values()]
    assert tries == [record.error["tries"] for record in Run(run.folder, "x").read().records.values()]
    assert all(8 <= one <= 9 for one in tries), "one more each, or two where the request ended just in time"


@pytest.mark.parametrize("code", [400, 402, 403])
def test_hopeless_trouble_ends_the_sweep_early(server, api, run, code):
    opened(server, api, run, "inv-1")
    server.fail_always("DELETE", fs.status(code))
    assert swept(api, run, timeout=20)[1] < 8
    assert server.count("DELETE") == 1
    assert states(run) == {"inv-1": "open"}
    assert run.state.records["inv-1"].error["status"] == code


def test_a_revoked_key_ends_the_sweep_early_and_is_told(server, api, run):
    opened(server, api, run, "inv-1")
    server.keys.clear()
    problem, took = swept(api, run, timeout=20)
    assert problem.status == 401
    assert took < 8
    assert states(run) == {"inv-1": "open"}


def test_a_session_that_ended_itself_is_no_failure(server, api, run):
    server.end(opened(server, api, run, "inv-1"))
    assert swept(api, run)[0] is None
    assert run.state.records["inv-1"].already


@pytest.mark.parametrize("method", ["DELETE", "GET"])
@pytest.mark.parametrize("fault", [fs.silent, fs.trickle(b""), fs.trickle(b"HTTP/1.1 200 OK\r\nX: ")])
def test_the_budget_is_kept(server, api, run, method, fault):
    opened(server, api, run, "inv-1")
    lost(server, api, run, "inv-2")
    server.fail_always(method, fault)
    assert swept(api, run, timeout=0.4)[1] < 6


# lost creations


@pytest.mark.parametrize("state", ["lost", "pending"])
def test_a_lost_creation_is_found_and_ended(server, api, run, state):
    intend(run, "inv-1")
    if state == "lost":
        run.append("lost", "inv-1", time=time.time(), error=ERROR)
    session_id = server.add(*tags("inv-1"))
    assert swept(api, run)[0] is None
    assert server.alive == []
    record = run.state.records["inv-1"]
    assert (record.id, record.state, record.how) == (session_id, "ended", "sweep")


def test_a_lost_creation_that_turns_up_late_is_found(server, api, run):
    server.list_delay = 0.6
    lost(server, api, run, "inv-1")
    assert swept(api, run)[0] is None
    assert server.alive == []


def test_a_hopeless_failure_does_not_keep_a_lost_creation_from_being_found(server, api, run):
    bad = opened(server, api, run, "inv-1")
    server.list_delay = 0.4
    lost(server, api, run, "inv-2")
    server.fail_always("DELETE", fs.on(bad, fs.status(403)))
    swept(api, run, timeout=3)
    assert server.alive == [bad]


def test_a_lost_creation_that_never_turns_up_is_not_looked_for_for_ever(server, api, run):
    intend(run, "inv-1")
    problem, took = swept(api, run, timeout=30, grace=0.3)
    assert problem is None
    assert 0.2 < took < 10
    assert states(run) == {"inv-1": "pending"}


def test_a_lost_creation_whose_session_is_over_is_settled(server, api, run):
    server.end(lost(server, api, run, "inv-1"))
    assert swept(api, run)[0] is None
    record = run.state.records["inv-1"]
    assert (record.state, record.already) == ("ended", True)
    assert server.count("DELETE") == 0


def test_two_sessions_of_one_creation_are_both_ended(server, api, run):
    opened(server, api, run, "inv-1")
    server.add(*tags("inv-1"))
    assert swept(api, run)[0] is None
    assert server.alive == []
    assert len(run.state.records) == 2


def test_a_session_that_the_record_does_not_know_is_ended(server, api, run):
    opened(server, api, run, "inv-1")
    server.add(*tags("inv-elsewhere"))
    server.end(server.add(*tags("inv-over")))
    assert swept(api, run)[0] is None
    assert server.alive == []
    assert set(run.state.records) == {"inv-1", "inv-elsewhere"}


def test_a_list_that_fails_is_the_problem_that_is_told(server, api, run):
    opened(server, api, run, "inv-1")
    server.fail_always("GET", fs.status(403))
    problem = adopt_listed(api, run, "r1", how="sweep", deadline=time.monotonic() + 5)
    assert problem.status == 403
    assert swept(api, run)[0].status == 403
    assert server.alive == []


def test_lost_creations_are_looked_for_until_the_list_works(server, api, run):
    lost(server, api, run, "inv-1")
    server.fail("GET", *[fs.status(503)] * 9)
    assert swept(api, run, pauses=(0.01,))[0] is None
    assert server.alive == []


def test_sessions_of_workers_elsewhere_are_found_by_the_runs_tag(server, api, run):
    server.add(*tags("inv-1"))
    assert swept(api, run)[0] is None
    assert (len(server.alive), server.requests) == (1, [])
    assert swept(api, run, elsewhere=True)[0] is None
    assert server.alive == []
    assert run.state.records["inv-1"].how == "sweep"


# ending


def test_only_those_that_failed_are_returned(server, api, run):
    bad, _good = opened(server, api, run, "inv-1"), opened(server, api, run, "inv-2")
    server.fail_always("DELETE", fs.on(bad, fs.status(403)))
    records = list(run.read().records.values())
    failures = end_sessions(api, run, records, how="teardown", deadline=time.monotonic() + 5)
    assert list(failures) == ["inv-1"]
    assert server.alive == [bad]
    assert run.read().records["inv-2"].how == "teardown"
    assert end_sessions(api, run, [], how="teardown", deadline=time.monotonic() + 5) == {}


def test_past_the_deadline_the_caller_is_not_held(server, api, run):
    for n in range(3):
        opened(server, api, run, f"inv-{n}")
    server.fail_always("DELETE", fs.silent)
    before = time.monotonic()
    failures = end_sessions(api, run, run.read().records.values(), how="teardown", deadline=before + 0.2)
    assert time.monotonic() - before < 8
    assert len(failures) == 3
    assert {error.message for error in failures.values()} <= {sweep._TOO_LATE, "no answer in time"}


def test_what_the_disk_does_not_take_is_known_in_memory(server, api, run):
    opened(server, api, run, "inv-1")
    record = run.read().records["inv-1"]
    (run.folder / "journal.jsonl").unlink()
    (run.folder / "journal.jsonl").mkdir()
    assert end_sessions(api, run, [record], how="test", deadline=time.monotonic() + 5) == {}
    assert record.state == "ended"
    assert server.alive == []


def test_one_is_ended_without_a_thread(server, api, run):
    opened(server, api, run, "inv-1")
    record = run.read().records["inv-1"]
    server.fail("DELETE", fs.status(403))
    deadline = time.monotonic() + 5
    assert end_session(api, run, record, how="test", deadline=deadline).status == 403
    assert end_session(api, run, record, how="test", deadline=deadline) is None
    assert (server.alive, record.state, states(run)) == ([], "ended", {"inv-1": "ended"})


def test_what_ran_in_a_local_backend_that_is_gone_is_over(server, api, run):
    opened(server, api, run, "inv-1")
    lost(server, api, run, "inv-2")
    opened(server, api, run, "inv-3")
    run.append("ended", "inv-3", how="test", already=False, note="")
    write_off(run)
    assert states(run) == {"inv-1": "ended", "inv-2": "refused", "inv-3": "ended"}
    assert run.state.settled
    assert run.state.records["inv-3"].how == "test"
    assert server.requests == []


# a dead owner


JOIN = """
import sys
from pathlib import Path
from pytest_anchor.registry import Run
run = Run(Path(sys.argv[1]), "gw0")
run.join()
print("joined", flush=True)
sys.stdin.read()
"""


def test_a_killed_owners_sessions_are_ended_and_a_living_ones_are_not(server, api, run):
    dead, mine = opened(server, api, run, "inv-1", owner="gw0"), opened(server, api, run, "inv-2")
    with script(JOIN, run.folder) as worker:
        assert read_line(worker) == "joined\n"
        looks = iter([True, True, False])  # the run ends before its worker does
        sweep_owner(api, run, "r1", "gw0", goes_on=lambda: next(looks))
        assert server.alive == [dead, mine]
        worker.send_signal(signal.SIGKILL)
        worker.wait(10)
    sweep_owner(api, run, "r1", "gw0", goes_on=lambda: True)
    assert server.alive == [mine]
    assert run.read().records["inv-1"].how == "sweep"


def test_what_a_dead_owner_was_creating_is_found_and_what_a_living_one_is_creating_is_not(server, api, run):
    intend(run, "inv-1", owner="gw0")
    intend(run, "inv-2")
    server.add(*tags("inv-1"))
    under_way = server.add(*tags("inv-2"))
    sweep_owner(api, run, "r1", "gw0", goes_on=lambda: True)
    assert server.alive == [under_way]
    assert states(run) == {"inv-1": "ended", "inv-2": "pending"}


def test_the_api_may_be_gone(run, quick):
    api = AnchorAPI("http://127.0.0.1:1", KEY)
    intend_with(api, run, "inv-1")
    run.append("created", "inv-1", id="abc", seal=api.seal("inv-1", "abc"))
    problem, took = swept(api, run, timeout=0.5)
    assert problem is not None
    assert took < 3
    assert states(run) == {"inv-1": "open"}


@contextmanager
def full_disk(size):
    """No file grows beyond *size* bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_session_that_is_found_when_the_disk_takes_no_more_is_ended(server, api, run):
    opened(server, api, run, "inv-1")
    found = server.add(*tags("inv-2"))
    journal = run.folder / "journal.jsonl"
    before = journal.read_bytes()
    with full_disk(len(before)):
        swept(api, run, timeout=2)
    assert found not in server.alive
    assert journal.read_bytes() == before


# what a record must show before its session is ended


def test_a_record_that_was_edited_has_nothing_ended(server, api, run):
    mine, theirs = opened(server, api, run, "inv-1"), server.add("theirs")
    journal = run.folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace(mine, theirs))
    assert swept(api, run, timeout=20)[1] < 8
    assert theirs in server.alive
    assert server.count("DELETE", f"/v1/sessions/{theirs}") == 0
    error = run.state.records["inv-1"].error
    assert "or the record was edited; nothing was sent" in error["message"]
    assert mine not in server.alive  # found by its tag


@pytest.mark.parametrize(
    ("nonce", "sealed"),
    [
        ("other-1", ("other-1", "{id}")),  # another run's creation, and its true seal
        ("inv-1", ("inv-2", "{id}")),
        ("inv-1", ("inv-1", "another-id")),
        ("inv-1", ()),
        ("inv", ("inv", "{id}")),
    ],
)
def test_a_seal_is_for_one_id_of_one_creation_of_this_run(server, api, run, nonce, sealed):
    theirs = server.add("theirs")
    intend_with(api, run, nonce)
    run.append("created", nonce, id=theirs, seal=api.seal(*(word.format(id=theirs) for word in sealed)))
    swept(api, run)
    assert server.alive == [theirs]
    assert server.count("DELETE") == 0


@pytest.mark.parametrize("other", ["key", "url"])
def test_a_session_is_ended_only_with_its_key_and_where_it_was_created(server, api, run, other):
    created = opened(server, api, run, "inv-1")
    server.keys.add("another-key")
    wrong = AnchorAPI(*((server.url, "another-key") if other == "key" else (f"{server.url}/", KEY)))
    (failure,) = end_sessions(
        wrong, run, run.read().records.values(), how="sweep", deadline=time.monotonic() + 5
    ).values()
    assert "created with another key or base URL" in failure.message
    assert server.requests == []
    assert server.alive == [created]


@pytest.mark.parametrize("seal", ["", "x" * 10_000, "é", "\ud800", 7, ["s"], None])
def test_a_strange_seal_is_no_seal(server, api, run, seal):
    good, theirs = opened(server, api, run, "inv-1"), server.add("theirs")
    intend_with(api, run, "inv-2")
    run.append("created", "inv-2", id=theirs, seal=seal)
    assert swept(api, run, timeout=20, grace=0.0)[1] < 8
    assert server.alive == [theirs]
    assert server.count("DELETE") == server.count("DELETE", f"/v1/sessions/{good}") == 1
    assert run.state.unreadable == (0 if isinstance(seal, str) and seal.isascii() else 1)
    assert not run.state.settled


# a session that hangs, and an API that asks to wait


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
    assert {record.error["message"] for record in left} <= {"no answer in time", sweep._TOO_LATE}
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

    def interrupt(_done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.end_sessions(
            api, run, records, how="sweep", deadline=time.monotonic() + 20, progress=interrupt, at_once=2
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
    share = sweep.shares(api, count, 110.0, 16, again=again)
    assert [share() - 100 for _ in expected] == pytest.approx(expected)


def test_an_api_that_is_slow_for_all_gets_the_time_there_is(api, monkeypatch):
    share = sweep.shares(api, 128, 110.0, 16, again=True)
    for batch in range(8):
        now = 100 + batch * 0.9
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        assert min(share() for _ in range(16)) >= now + 0.9


def test_a_share_begins_after_the_pause_and_ends_in_time(api, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    api._here().pause.until = 104.0
    assert sweep.shares(api, 1, 110.0, 16, again=True)() == 107.0
    assert sweep.shares(api, 99, 104.2, 16, again=True)() == 104.2
    assert sweep.shares(api, 1, 103.0, 16)() == 103.0


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
    told = []
    swept(api, run, timeout=2, ended=told.append)
    assert sorted(told) == ["inv-1", "inv-2"]


def test_connections_are_kept_alive(server, api, run):
    for n in range(80):
        opened(server, api, run, f"inv-{n}")
    assert swept(api, run, timeout=60)[0] is None
    assert server.count("DELETE") == 80
    assert server.connections <= sweep.AT_ONCE


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
    problem, took = swept(api, run, timeout=4)
    assert len(server.requests) <= sweep.AT_ONCE
    assert problem.status == 429
    assert took < 3  # nothing can change any more
    left = run.read().records.values()
    assert all(record.open and record.error["status"] == 429 for record in left)
    assert len(journal.read_bytes().splitlines()) <= size + 40


def test_what_is_not_sent_during_a_pause_is_written_down_once(server, api, run):
    for n in range(3):
        opened(server, api, run, f"inv-{n}")
    records = list(run.read().records.values())
    api._here().pause.extend(30)
    journal = run.folder / "journal.jsonl"
    sizes = []
    for _ in range(3):
        failures = end_sessions(api, run, records, how="sweep", deadline=time.monotonic() + 5)
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
    assert len(times) <= 40 + 2 * sweep.AT_ONCE
