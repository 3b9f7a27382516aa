"""How creations meet what the plan allows."""

import re
import threading
import time
from unittest.mock import ANY

import fault_server as fs
import pytest
from limited_owners import BUSY, in_background, wait_for

from pytest_anchor.api import AnchorAPI
from pytest_anchor.broker import owner as owner_module
from pytest_anchor.broker.owner import CancelledError, Request
from pytest_anchor.client import Client
from pytest_anchor.errors import AnchorAPIError, AnchorError, AnchorLimitError, Limit
from pytest_anchor.registry.journal import Run
from pytest_anchor.session import AnchorSessionFactory

BLOCKED = Request("t", is_self_blocked=True)


def end(owner, session, ended_by="test", timeout=5.0):
    return owner.end([session.record.nonce], ended_by=ended_by, timeout=timeout)


def test_a_creation_that_meets_a_429_waits_and_succeeds(server, serve, settings):
    client = serve(settings._replace(create_timeout=20.0))
    server.fail("POST", fs.status(429, Retry_After="1", RateLimit_Policy="q=100;w=60"), fs.status(429))
    session = AnchorSessionFactory(client, {}, lambda: "t")()
    assert server.alive == [session.id]
    assert server.count("POST") == 3
    assert server.times[1] - server.times[0] > 0.95
    state = Run(settings.folder).read()
    assert sorted(one.state for one in state.records.values()) == ["open", "refused", "refused"]
    assert 1.0 < sum(wait.rate for wait in state.waits.values()) < 1.0 + BUSY
    assert (len(state.limited), state.quota, state.window) == (2, 100, 60)
    assert not any(one.retried for one in state.records.values()), "a 429 is not a failure"


def test_a_rate_that_an_earlier_run_has_met_is_on_record(server, make_owner, run):
    owner = make_owner()
    owner.limits.record_rate_limited("n", time.time(), Limit(retry_after=0.0, quota=100, window=60.0))
    time.sleep(max(owner.limits.store.read()[0].until - time.time(), 0.0))
    for _ in range(2):
        owner.create({}, Request("t"))
    assert (run.state.quota, run.state.window) == (100, 60)
    assert list(run.state.waits.values()) == [(0.0, 0.0, ANY, 0.0)], "it is said once"


def test_an_api_that_goes_on_with_429_is_not_hammered_and_given_up_in_time(server, make_owner):
    owner = make_owner(create_timeout=3.0)
    server.fail_always("POST", fs.status(429))
    with pytest.raises(AnchorLimitError, match="--anchor-create-timeout"):
        owner.create({}, Request("t"))
    assert 2 <= server.count("POST") <= 4


def test_the_same_where_the_limits_cannot_be_written(server, api, make_owner, settings):
    owner = make_owner(create_timeout=3.0)
    (settings.folder.parent / f"limits-{api.account}.json").mkdir()
    server.fail_always("POST", fs.status(429))
    with pytest.raises(AnchorLimitError):
        owner.create({}, Request("t"))
    assert 2 <= server.count("POST") <= 4


@pytest.mark.parametrize("window", [7200, 86400])
def test_a_window_of_hours_is_no_reason_to_ask_again_and_again(server, make_owner, window):
    owner = make_owner(create_timeout=2.0)
    server.fail_always("POST", fs.status(429, RateLimit_Policy=f"q=100;w={window}"))
    with pytest.raises(AnchorLimitError, match=f"100 creations in {window} s"):
        owner.create({}, Request("t"))
    assert server.count("POST") == 1


def test_the_plan_is_asked_for_once_in_a_run_and_all_its_processes_share_the_cap(server, serve, settings):
    server.cap = 2
    settings = settings._replace(max_sessions=None, create_timeout=0.3)
    clients = [serve(settings), *(Client(settings._replace(owner=name)) for name in ("gw1", "gw2"))]
    factories = [AnchorSessionFactory(client, {}, lambda: "t") for client in clients]
    factories[0](), factories[1]()
    with pytest.raises(
        AnchorLimitError, match=r"2 of at most 2 are open \(1 by this run \[main\]; 1 by this run \[gw1"
    ):
        factories[2]()
    assert server.asked_for_cap == 1
    for client in clients[1:]:
        client.leave()


@pytest.mark.parametrize("most", [None, 0, -5, "7", True, 10**30])
def test_a_cap_that_makes_no_sense_caps_nothing(server, serve, settings, most):
    server.cap = most
    factory = AnchorSessionFactory(serve(settings._replace(max_sessions=None)), {}, lambda: "t")
    assert len({factory().id for _ in range(3)}) == 3


def test_each_account_has_its_own_limits_and_its_file_not_the_key(server, settings, make_owner):
    server.keys.add("another-key")
    other = AnchorAPI(server.url, "another-key")
    for owner in (make_owner(max_sessions=1), make_owner("gw1", other, max_sessions=1)):
        owner.create({}, Request("t"))
    files = list(settings.folder.parent.glob("limits-*"))
    assert len(files) == 2
    assert not any(key in f"{file}{file.read_text()}" for file in files for key in server.keys)


def test_a_local_backend_has_limits_of_its_own(settings, make_owner):
    make_owner(local=True, max_sessions=1).create({}, Request("t"))
    assert not list(settings.folder.parent.glob("limits-*"))
    assert len(list(settings.folder.glob("limits-*"))) == 1


def test_a_slot_is_free_when_the_session_is_over(server, make_owner):
    owner = make_owner(max_sessions=1)
    for _ in range(3):
        end(owner, owner.create({}, Request("t")))
    session = owner.create({}, Request("t"))
    with pytest.raises(AnchorLimitError, match="itself"):
        owner.create({}, BLOCKED)
    end(owner, session, "teardown")
    server.fail("POST", fs.status(402))
    with pytest.raises(AnchorAPIError):
        owner.create({}, BLOCKED)
    owner.create({}, BLOCKED)


def test_a_slot_is_free_when_a_sweep_has_ended_the_session(make_owner):
    owner = make_owner(max_sessions=1)
    session = owner.create({}, Request("t"))
    owner.release_slots([session.record.nonce])
    owner.create({}, BLOCKED)


def test_a_creation_that_is_retried_needs_one_slot(server, make_owner):
    owner = make_owner(max_sessions=1)
    server.fail("POST", fs.reset)
    owner.create({}, BLOCKED)
    assert server.count("POST") == 2


def test_what_a_teardown_could_not_end_is_tried_again_while_its_process_waits(server, make_owner):
    owner = make_owner(max_sessions=1, create_timeout=20.0)
    session = owner.create({}, Request("t"))
    server.fail_always("DELETE", fs.for_a_while(1.0, fs.status(500)))
    assert end(owner, session, "teardown", timeout=0.5)
    other = owner.create({}, BLOCKED)
    assert server.alive == [other.record.id]


def test_what_a_teardown_could_not_end_is_tried_again_while_another_waits(server, make_owner, monkeypatch):
    monkeypatch.setattr(owner_module, "END_AGAIN", 0.1)
    owner, other = make_owner(max_sessions=1), make_owner("gw1", max_sessions=1, create_timeout=60.0)
    session = owner.create({}, Request("t"))
    server.fail_always("DELETE", fs.for_a_while(1.0, fs.status(500)))
    assert end(owner, session, "teardown", timeout=0.5)
    server.requests.clear()
    time.sleep(0.5)
    assert server.requests == [], "no test waits"
    got = other.create({}, Request("u"))
    assert server.alive == [got.record.id]


def test_what_a_test_itself_could_not_end_is_not_tried_again_under_it(server, make_owner, monkeypatch):
    monkeypatch.setattr(owner_module, "END_AGAIN", 0.1)
    owner = make_owner(max_sessions=1, create_timeout=1.0)
    session = owner.create({}, Request("t"))
    server.fail("DELETE", fs.status(403))
    assert end(owner, session)
    with pytest.raises(AnchorLimitError):
        owner.create({}, Request("t"))
    assert server.alive == [session.record.id]


def test_a_thread_that_may_end_a_session_is_waited_for(server, serve, settings):
    client = serve(settings._replace(create_timeout=20.0, max_sessions=1))
    factory, created, go = AnchorSessionFactory(client, {}, lambda: "t"), [], threading.Event()

    def hold():
        created.append(factory())
        go.wait(BUSY)
        created[0].end()

    thread = in_background(hold)
    wait_for(lambda: created)
    threading.Timer(0.4, go.set).start()
    assert factory().id != created[0].id
    thread.join()
    with pytest.raises(AnchorLimitError, match="would wait for itself"):  # that thread is over
        factory()


def test_what_is_waited_for_reaches_the_test_process(server, serve, settings, monkeypatch):
    monkeypatch.setattr("pytest_anchor.budget.admission.REPORT_AFTER", 0.1)
    client = serve(settings._replace(create_timeout=20.0))
    server.fail("POST", fs.status(429, Retry_After="1"))
    notes = []
    AnchorSessionFactory(client, {}, lambda: "t.py::x", on_wait=notes.append)()
    assert notes
    assert re.fullmatch(r"t\.py::x waits for its turn: the API asked to wait", notes[0])


class Withdrawn(Request):
    is_cancelled = False


def test_a_request_that_is_withdrawn_leaves_the_queue(server, make_owner):
    owner = make_owner(max_sessions=1, create_timeout=20.0)
    owner.create({}, Request("t"))
    request, outcome = Withdrawn("u"), []

    def create():
        with pytest.raises(CancelledError):
            owner.create({}, request)
        outcome.append("withdrawn")

    thread = in_background(create)
    wait_for(owner.limits.is_crowded)
    request.is_cancelled = True
    thread.join(BUSY)
    assert outcome == ["withdrawn"]
    assert not owner.limits.is_crowded()
    assert server.count("POST") == 1


@pytest.mark.parametrize("fault", [fs.status(429, Retry_After="1"), fs.status(503)], ids=["429", "503"])
def test_a_request_that_is_withdrawn_is_not_tried_again(server, make_owner, fault):
    owner, request = make_owner(create_timeout=20.0), Withdrawn("u")

    def withdraw(handler, act):
        request.is_cancelled = True
        return fault(handler, act)

    server.fail("POST", withdraw)
    with pytest.raises(CancelledError):
        owner.create({}, request)
    assert server.count("POST") == 1


def test_what_waits_when_the_run_is_over_creates_nothing(server, make_owner):
    owner = make_owner(max_sessions=1, create_timeout=60.0)
    session = owner.create({}, Request("t"))
    outcomes = []

    def create():
        with pytest.raises(AnchorError):
            owner.create({}, Request("u"))
        outcomes.append("refused")

    threads = [in_background(create) for _ in range(4)]
    wait_for(owner.limits.is_crowded)
    owner.stop()
    end(owner, session)
    for thread in threads:
        thread.join(BUSY)
    assert outcomes == ["refused"] * 4
    assert server.count("POST") == 1
