import threading
import time

import fault_server as fs
import pytest
from fault_server import KEY
from processes import full_disk
from records import ERROR, intend, intend_with, lost, opened, tags
from sweeps import Observer, states, swept

from pytest_anchor.api import AnchorAPI, Ended
from pytest_anchor.cleanup.ending import TOO_LATE, EndsSessions, end_in_parallel, end_sessions
from pytest_anchor.cleanup.policy import SweepPolicy
from pytest_anchor.cleanup.sweep import SweepTarget, mark_all_ended, mark_lost_refused, reconcile_with_api
from pytest_anchor.errors import AnchorAPIError
from pytest_anchor.registry.journal import Run
from pytest_anchor.settings import SWEEP_AT_ONCE
from pytest_anchor.tags import TAG, new_tag, run_tag


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
    observer = Observer()
    assert swept(api, run, observer=observer)[0] is None
    assert server.alive == strangers
    assert set(states(run).values()) == {"ended"}
    assert {record.ended_by for record in run.state.records.values()} == {"sweep"}
    assert (20, 20) in observer.steps
    assert observer.rounds == 1
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
    for n in range(SWEEP_AT_ONCE):
        opened(server, api, run, f"inv-{n}")
    together = threading.Barrier(SWEEP_AT_ONCE)

    def wait_for_all(_handler, act):
        together.wait(10)  # fails if any of them waits for another
        return act()

    server.fail_always("DELETE", wait_for_all)
    assert swept(api, run, timeout=20)[0] is None
    assert server.alive == []
    assert server.count("DELETE") == SWEEP_AT_ONCE


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
    failures = end_sessions(api, run, records, policy=SweepPolicy("sweep"), deadline=time.monotonic() + 0.2)
    tries = [error.tries for error in failures.values()]
    assert tries == [record.error["tries"] for record in Run(run.folder).read().records.values()]
    assert all(8 <= one <= 9 for one in tries), "one more each, or two where the request ended just in time"


@pytest.mark.parametrize("outcome", [Ended(already=False), AnchorAPIError("end session s", message="no")])
def test_an_answer_in_time_counts_though_it_is_written_down_after_it(api, outcome):
    class Ends(EndsSessions):
        def end(self, *_):
            return outcome

        def settle(self, *_):
            while time.monotonic() < deadline + 0.1:
                time.sleep(0.1)

    deadline = time.monotonic() + 1.0
    assert end_in_parallel(["s"], Ends(), api, deadline=deadline) == {"s": outcome}


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
    assert (record.id, record.state, record.ended_by) == (session_id, "ended", "sweep")


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
    problem = reconcile_with_api(SweepTarget(api, run, "r1"), SweepPolicy(), deadline=time.monotonic() + 5)
    assert problem.status == 403
    assert swept(api, run)[0].status == 403
    assert server.alive == []


def test_what_two_sweeps_list_at_once_is_on_record_once(server, api, run, monkeypatch):
    intend_with(api, run, "inv-1")
    found = [server.add(*tags("inv-1")), server.add(*tags("inv-1"))]  # the API has made two of one
    target = SweepTarget(api, run, "r1")
    listed = api.sessions_with_tag(run_tag("r1"), deadline=time.monotonic() + 5)

    class Late:
        """Is listed before the other sweep has recorded anything, and gone through after it."""

        def __iter__(self):
            monkeypatch.setattr(api, "sessions_with_tag", lambda _tag, **_: listed)
            assert reconcile_with_api(target, SweepPolicy(), deadline=time.monotonic() + 5) is None
            return iter(listed)

    monkeypatch.setattr(api, "sessions_with_tag", lambda _tag, **_: Late())
    assert reconcile_with_api(target, SweepPolicy(), deadline=time.monotonic() + 5) is None
    assert sorted(record.id for record in run.read().records.values()) == sorted(found)


def test_lost_creations_are_looked_for_until_the_list_works(server, api, run):
    lost(server, api, run, "inv-1")
    server.fail("GET", *[fs.status(503)] * 9)
    assert swept(api, run, pauses=(0.01,))[0] is None
    assert server.alive == []


def test_sessions_of_workers_elsewhere_are_found_by_the_runs_tag(server, api, run):
    server.add(*tags("inv-1"))
    assert swept(api, run)[0] is None
    assert (len(server.alive), server.requests) == (1, [])
    assert swept(api, run, always_lists=True)[0] is None
    assert server.alive == []
    assert run.state.records["inv-1"].ended_by == "sweep"


def test_a_last_look_finds_what_the_api_made_twice(server, api, run):
    opened(server, api, run, "inv-1")
    assert swept(api, run)[0] is None
    twin = server.add(*tags("inv-1"))
    server.requests.clear()
    assert swept(api, run)[0] is None
    assert server.requests == []  # all that is on record is over
    assert swept(api, run, always_lists=True, ends_unrecorded=False)[0] is None
    assert server.alive == []
    assert [record.id for record in run.state.records.values()][1] == twin
    assert server.requests[0][0] == "GET"
    assert server.count("DELETE") == 1


def test_a_last_look_that_finds_nothing_is_one_request(server, api, run):
    opened(server, api, run, "inv-1")
    assert swept(api, run)[0] is None
    server.requests.clear()
    assert swept(api, run, always_lists=True)[0] is None
    assert server.requests == [("GET", "/v1/sessions/all/status")]


def test_a_last_look_that_fails_is_the_problem_that_is_told(server, api, run):
    server.fail_always("GET", fs.status(403))
    assert swept(api, run, always_lists=True)[0].status == 403


def test_what_no_record_knows_is_left_to_who_adopts(server, api, run):
    lost(server, api, run, "inv-1")
    elsewhere = server.add(*tags("inv-2"))
    assert swept(api, run, ends_unrecorded=False)[0] is None
    assert server.alive == [elsewhere]
    assert list(run.state.records) == ["inv-1"]
    assert swept(api, run, ends_unrecorded=False, always_lists=True)[0] is None
    assert server.alive == [elsewhere]


# ending


def test_only_those_that_failed_are_returned(server, api, run):
    bad, _good = opened(server, api, run, "inv-1"), opened(server, api, run, "inv-2")
    server.fail_always("DELETE", fs.on(bad, fs.status(403)))
    records = list(run.read().records.values())
    failures = end_sessions(api, run, records, policy=SweepPolicy("teardown"), deadline=time.monotonic() + 5)
    assert list(failures) == ["inv-1"]
    assert server.alive == [bad]
    assert run.read().records["inv-2"].ended_by == "teardown"
    assert end_sessions(api, run, [], policy=SweepPolicy("teardown"), deadline=time.monotonic() + 5) == {}


def test_past_the_deadline_the_caller_is_not_held(server, api, run):
    for n in range(3):
        opened(server, api, run, f"inv-{n}")
    server.fail_always("DELETE", fs.silent)
    before = time.monotonic()
    failures = end_sessions(
        api, run, run.read().records.values(), policy=SweepPolicy("teardown"), deadline=before + 0.2
    )
    assert time.monotonic() - before < 8
    assert len(failures) == 3
    assert {error.message for error in failures.values()} <= {TOO_LATE, "no answer in time"}


def test_what_the_disk_does_not_take_is_known_in_memory(server, api, run):
    opened(server, api, run, "inv-1")
    record = run.read().records["inv-1"]
    (run.folder / "journal.jsonl").unlink()
    (run.folder / "journal.jsonl").mkdir()
    assert end_sessions(api, run, [record], policy=SweepPolicy("test"), deadline=time.monotonic() + 5) == {}
    assert record.state == "ended"
    assert server.alive == []


def test_an_end_that_failed_can_be_tried_again(server, api, run):
    opened(server, api, run, "inv-1")
    record = run.read().records["inv-1"]
    server.fail("DELETE", fs.status(403))
    ending = {"policy": SweepPolicy("test"), "deadline": time.monotonic() + 5}
    assert end_sessions(api, run, [record], **ending)["inv-1"].status == 403
    assert end_sessions(api, run, [record], **ending) == {}
    assert (server.alive, record.state, states(run)) == ([], "ended", {"inv-1": "ended"})


def test_what_ran_in_a_local_backend_that_is_gone_is_over(server, api, run):
    opened(server, api, run, "inv-1")
    lost(server, api, run, "inv-2")
    opened(server, api, run, "inv-3")
    run.append("ended", "inv-3", ended_by="test", already=False, note="")
    mark_all_ended(run)
    assert states(run) == {"inv-1": "ended", "inv-2": "refused", "inv-3": "ended"}
    assert run.state.settled
    assert run.state.records["inv-3"].ended_by == "test"
    assert server.requests == []


def test_what_a_local_backend_was_creating_when_it_went_never_came_to_be(server, api, run):
    opened(server, api, run, "inv-1")
    lost(server, api, run, "inv-2")
    intend(run, "inv-3")
    mark_lost_refused(run)
    assert states(run) == {"inv-1": "open", "inv-2": "refused", "inv-3": "refused"}
    assert server.requests == []


# a part of a run


def of_gw0(record):
    return record.owner == "gw0"


def test_a_sweep_of_some_sessions_ends_no_others(server, api, run):
    dead, mine = opened(server, api, run, "inv-1", owner="gw0"), opened(server, api, run, "inv-2")
    assert swept(api, run, is_included=of_gw0, ends_unrecorded=False)[0] is None
    assert server.alive == [mine]
    assert run.read().records["inv-1"].ended_by == "sweep"
    assert server.requests == [("DELETE", f"/v1/sessions/{dead}")]  # its list would tell nothing
    assert swept(api, run, is_included=of_gw0, ends_unrecorded=False)[0] is None
    assert len(server.requests) == 1


def test_what_a_dead_process_was_creating_is_found_and_what_a_living_one_is_creating_is_not(server, api, run):
    intend(run, "inv-1", owner="gw0")
    intend(run, "inv-2")
    server.add(*tags("inv-1"))
    under_way, unknown = server.add(*tags("inv-2")), server.add(*tags("inv-3"))
    assert swept(api, run, is_included=of_gw0, ends_unrecorded=False)[0] is None
    assert server.alive == [under_way, unknown]
    assert states(run) == {"inv-1": "ended", "inv-2": "pending"}


def test_a_sweep_that_is_not_to_go_on_begins_no_round(server, api, run):
    opened(server, api, run, "inv-1")
    observer = Observer(iter([False]))
    assert swept(api, run, observer=observer)[0] is None
    assert (server.requests, observer.rounds) == ([], 0)


def test_a_sweep_that_is_not_to_go_on_reads_no_list(server, api, run):
    opened(server, api, run, "inv-1")
    lost(server, api, run, "inv-2")
    looks = [True, False]
    observer = Observer(iter([*looks, *[False] * 9]))
    swept(api, run, observer=observer)
    assert (server.count("DELETE"), server.count("GET")) == (1, 0)


def test_a_pause_is_over_when_the_sweep_is_not_to_go_on(server, api, run):
    opened(server, api, run, "inv-1")
    server.fail_always("DELETE", fs.status(500))
    until = time.monotonic() + 0.5

    class Soon(Observer):
        def should_continue(self):
            return time.monotonic() < until

    assert swept(api, run, timeout=60, pauses=(50.0,), observer=Soon())[1] < 10


def test_the_api_may_be_gone(run, quick):
    api = AnchorAPI("http://127.0.0.1:1", KEY)
    intend_with(api, run, "inv-1")
    run.append("created", "inv-1", id="abc", signature=api.sign("inv-1", "abc"))
    problem, took = swept(api, run, timeout=0.5)
    assert problem is not None
    assert took < 8
    assert states(run) == {"inv-1": "open"}


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
    run = Run(run.folder)  # as the next run finds it
    assert swept(api, run, timeout=20)[1] < 8
    assert theirs in server.alive
    assert server.count("DELETE", f"/v1/sessions/{theirs}") == 0
    error = run.state.records["inv-1"].error
    assert "or the record was edited; nothing was sent" in error["message"]
    assert mine not in server.alive  # found by its tag


@pytest.mark.parametrize(
    ("nonce", "signed"),
    [
        ("other-1", ("other-1", "{id}")),  # another run's creation, and its true signature
        ("inv-1", ("inv-2", "{id}")),
        ("inv-1", ("inv-1", "another-id")),
        ("inv-1", ()),
        ("inv", ("inv", "{id}")),
    ],
)
def test_a_seal_is_for_one_id_of_one_creation_of_this_run(server, api, run, nonce, signed):
    theirs = server.add("theirs")
    intend_with(api, run, nonce)
    run.append("created", nonce, id=theirs, signature=api.sign(*(word.format(id=theirs) for word in signed)))
    swept(api, run)
    assert server.alive == [theirs]
    assert server.count("DELETE") == 0


@pytest.mark.parametrize("other", ["key", "url"])
def test_a_session_is_ended_only_with_its_key_and_where_it_was_created(server, api, run, other):
    created = opened(server, api, run, "inv-1")
    server.keys.add("another-key")
    wrong = AnchorAPI(*((server.url, "another-key") if other == "key" else (f"{server.url}/", KEY)))
    (failure,) = end_sessions(
        wrong, run, run.read().records.values(), policy=SweepPolicy("sweep"), deadline=time.monotonic() + 5
    ).values()
    assert "created with another key or base URL" in failure.message
    assert server.requests == []
    assert server.alive == [created]


@pytest.mark.parametrize("signature", ["", "x" * 10_000, "é", "\ud800", 7, ["s"], None])
def test_a_strange_seal_is_no_seal(server, api, run, signature):
    good, theirs = opened(server, api, run, "inv-1"), server.add("theirs")
    intend_with(api, run, "inv-2")
    run.append("created", "inv-2", id=theirs, signature=signature)
    assert swept(api, run, timeout=20, grace=0.0)[1] < 8
    assert server.alive == [theirs]
    assert server.count("DELETE") == server.count("DELETE", f"/v1/sessions/{good}") == 1
    assert run.state.unreadable == (0 if isinstance(signature, str) and signature.isascii() else 1)
    assert not run.state.settled
