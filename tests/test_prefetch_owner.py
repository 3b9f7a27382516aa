"""What the broker creates ahead for a process, against a server."""

from __future__ import annotations

import threading
import time

import fault_server as faults
import pytest

from pytest_anchor.broker import owner as owner_module
from pytest_anchor.broker.owner import Owner, Request
from pytest_anchor.configuration import Wanted
from pytest_anchor.errors import AnchorLimitError
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.records import Record
from pytest_anchor.session import AnchorSessionFactory

BUSY = 10.0  # seconds by which a machine with much to do may be late


@pytest.fixture
def owners(make_owner):
    def owner(name: str = "main", *, prefetch: int = 1, cap: int = 0) -> Owner:
        return make_owner(name, prefetch=prefetch, max_sessions=cap)

    return owner


def wanted(*tests: str, **config: object) -> list[Wanted]:
    return [Wanted(test, config) for test in tests]


def create(owner: Owner, test: str, **config: object):
    return owner.create(config, Request(test, is_self_blocked=True)).record


def records(owner: Owner) -> list[Record]:
    return list(Run(owner.settings.folder).read().records.values())


def ahead(owner: Owner, *upcoming: Wanted) -> None:
    """Have *owner* create for *upcoming*, and wait for that."""
    owner.plan(None, upcoming)
    assert owner._prefetch is not None
    assert owner._prefetch._creations.wait(30)


def test_nothing_is_created_ahead_of_the_first(server, serve, settings, until):
    client = serve(settings._replace(prefetch=1))
    plan = {"timeout": 5, "current": None, "upcoming": wanted("b")}
    client.request("plan", **plan)
    time.sleep(0.2)
    assert not server.requests
    assert not settings.folder.exists()
    factory = AnchorSessionFactory(client, {}, lambda: "a")
    first = factory()
    client.request("plan", **plan)
    until(lambda: len(server.alive) == 2)
    assert factory().id != first.id
    assert server.count("POST") == 2


def test_a_test_whose_own_was_made_ahead_is_known_by_its_configuration(server, serve, settings, until):
    client = serve(settings._replace(prefetch=1))
    factory = AnchorSessionFactory(client, {"browser": {"x": 1}}, lambda: "a")
    factory()
    client.request("plan", timeout=5, current=wanted("a", y=1)[0], upcoming=wanted("b", browser={"x": 1}))
    time.sleep(0.2)
    assert server.count("POST") == 1, "the test that runs goes first"
    client.request("plan", timeout=5, current=None, upcoming=wanted("b", browser={"x": 1}))
    until(lambda: len(server.alive) == 2)
    factory(session=None)
    assert server.count("POST") == 2


def test_the_record_tells_for_whom_it_was_made_and_who_has_it(server, owners):
    owner = owners(prefetch=2)
    first = create(owner, "a")
    ahead(owner, *wanted("b", "c"))
    assert {(one.test, one.ahead) for one in records(owner)} == {("a", False), ("b", True), ("c", True)}
    taken = create(owner, "other")
    assert taken.id != first.id
    (mine,) = (one for one in records(owner) if one.id == taken.id)
    assert (mine.test, mine.ahead, mine.taken, mine.state) == ("other", False, True, "open")
    assert 0 <= mine.waited < 20
    owner.finish(30)
    assert sorted(server.alive) == sorted([first.id, taken.id])
    (unused,) = (one for one in records(owner) if one.state == "ended")
    assert unused.ahead
    assert server.count("POST") == 3
    assert server.count("DELETE") == 1


@pytest.mark.parametrize("status", [400, 401, 402, 403])
def test_a_refusal_ahead_is_the_end_of_it_and_no_tests(server, owners, status):
    owner = owners()
    create(owner, "a")
    server.fail("POST", faults.status(status))
    for test in ("b", "c"):
        ahead(owner, *wanted(test))
        create(owner, test)
    assert server.count("POST") == 4
    assert len(server.alive) == 3
    assert [one.state for one in records(owner) if one.ahead] == ["refused"]


def test_a_429_ahead_is_obeyed_and_neither_repeated_nor_raised(server, owners):
    owner = owners()
    create(owner, "a")
    server.fail_always("POST", faults.status(429, Retry_After="30", RateLimit_Policy='"1";q=1;w=30'))
    for _ in range(5):
        ahead(owner, *wanted("b"))
    assert server.count("POST") == 2


@pytest.mark.parametrize("lost", [faults.lost_reset, faults.status(500), faults.body(b"\xff<"), faults.reset])
def test_what_was_lost_ahead_is_on_record_as_such(server, owners, lost):
    owner = owners()
    create(owner, "a")
    server.fail("POST", lost)
    for test in ("b", "c"):
        ahead(owner, *wanted(test))
        create(owner, test)
    assert [(one.state, one.test) for one in records(owner) if one.ahead] == [("lost", "b")]
    assert server.count("POST") == 4


def test_what_a_test_has_taken_counts_as_its_own(owners):
    owner = owners(cap=2)
    create(owner, "a")
    ahead(owner, *wanted("b"))
    create(owner, "b")
    start = time.monotonic()
    with pytest.raises(AnchorLimitError, match="holds all 2 of them"):
        create(owner, "b")
    assert time.monotonic() - start < BUSY


def test_another_owner_does_not_wait_for_what_nobody_has_taken(server, owners):
    one, other = owners("gw0", cap=2), owners("gw1", cap=2)
    create(one, "a")
    ahead(one, *wanted("b"))
    assert len(server.alive) == 2
    start = time.monotonic()
    create(other, "c")
    assert time.monotonic() - start < BUSY
    assert len(server.alive) == 2
    ahead(one, *wanted("b"))
    assert server.count("POST") == 3, "there is no slot for it"


def test_a_test_does_not_wait_for_what_is_kept_for_the_next(server, owners):
    owner = owners(cap=2, prefetch=2)
    create(owner, "a")
    server.fail("POST", faults.slow(0.3))
    owner.plan(None, wanted("b"))
    start = time.monotonic()
    create(owner, "a", browser={"x": 1})
    assert time.monotonic() - start < BUSY
    assert len(server.alive) == 2


def test_ends_that_were_not_begun_in_time_are_the_sweeps(server, owners, until, monkeypatch):
    monkeypatch.setattr(owner_module, "ENDS_AT_ONCE", 1)
    owner = owners()
    server.held["DELETE"] = threading.Event()
    owner.end_later([owner.create({}, Request(test)) for test in "abc"])
    until(lambda: server.count("DELETE") == 1)
    start = time.monotonic()
    owner.finish(0.2)
    assert 0.1 < time.monotonic() - start < BUSY
    server.held["DELETE"].set()
    until(lambda: not server.busy)
    assert owner._ends.wait(30)
    assert server.count("DELETE") == 1
    assert len(server.alive) == 2
