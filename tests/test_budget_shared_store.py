"""The limits that runs of several machines share: whatever is wrong with the server costs speed at most."""

import threading
import time
from functools import partial

import pytest
from limited_owners import BUSY, begin, in_background, wait_for
from memory_server import MemoryServer
from shared_runs import Machines, sign

from pytest_anchor.budget import leases, redis_server, rules, shared_store
from pytest_anchor.budget.redis_server import HEADER, ServerError
from pytest_anchor.budget.shared_store import hide, signed
from pytest_anchor.budget.state import Slot, State, Vanished
from pytest_anchor.errors import AnchorLimitError, Limit


@pytest.fixture
def server():
    return MemoryServer()


@pytest.fixture
def machines(tmp_path, server, monkeypatch):
    monkeypatch.setattr(shared_store, "PATIENCE", 1.0)
    monkeypatch.setattr(shared_store, "RETRY_INTERVAL", 0.05)
    machines = Machines(tmp_path, server)
    yield machines
    machines.close()


def held(machines):
    return sorted(slot.run for slot in machines.state.slots.values())


def test_the_runs_of_all_machines_have_one_cap(machines):
    one, other = machines.limits("a", cap=2), machines.limits("b", cap=2, timeout=0.5)
    begin(one, "a-1"), begin(one, "a-2")
    with pytest.raises(
        AnchorLimitError,
        match=r"2 of at most 2 are open, 2 of them of another run, on machine-a \(2 by a run on machine-a \[main\]\)",
    ):
        begin(other, "b-1")
    one.release_slots(["a-1"])
    begin(other, "b-1")
    assert held(machines) == ["a", "b"]


def test_a_wait_for_other_machines_is_counted_as_such(machines):
    one, other = machines.limits("a", cap=1), machines.limits("b", cap=1)
    begin(other, "b-1")
    timer = threading.Timer(0.4, lambda: other.release_slots(["b-1"]))
    timer.start()
    assert 0.3 < begin(one, "a-1").elsewhere_seconds < BUSY
    timer = threading.Timer(0.2, lambda: one.release_slots(["a-1"]))
    timer.start()
    own = begin(one, "a-2")
    assert own.slot_seconds > 0.1
    assert own.elsewhere_seconds == 0.0


def test_first_asked_is_first_served_over_all_machines(machines):
    limits = {run: machines.limits(run, cap=1) for run in "abc"}
    begin(limits["a"], "a-0")
    order, threads = [], []

    def wait(run):
        begin(limits[run], f"{run}-1")
        order.append(run)

    for run in "cb":
        threads.append(in_background(lambda run=run: wait(run)))
        wait_for(lambda: len(machines.state.queue) == len(threads))
    limits["a"].release_slots(["a-0"])
    wait_for(lambda: order == ["c"])
    limits["c"].release_slots(["c-1"])
    wait_for(lambda: order == ["c", "b"])


@pytest.mark.parametrize("ahead", [-500.0, 0.0, 3600.0])
def test_a_429_that_one_has_met_pauses_all_by_the_server_s_clock(machines, server, ahead):
    server.ahead = ahead
    one, other = machines.limits("a"), machines.limits("b")
    first = begin(one, "a-1")
    one.record_rate_limited("a-1", first.began, Limit(0.6, None, None))
    start = time.monotonic()
    assert begin(other, "b-1").began == pytest.approx(time.time() + ahead, abs=BUSY)
    assert 0.5 < time.monotonic() - start < BUSY


def test_what_is_stored_tells_neither_key_nor_nonce_nor_a_long_test_name(machines, server):
    limits = machines.limits("a", cap=1)
    begin(limits, "a-0123456789abcdef")
    waiter = in_background(lambda: pytest.raises(AnchorLimitError, begin, limits, "a-1", test="t" * 5000))
    wait_for(lambda: machines.state.queue)
    assert b"0123456789abcdef" not in server.value
    assert list(machines.state.slots) == [hide("a-0123456789abcdef")]
    assert len(server.value) < 1500
    limits.timeout = 0.0
    waiter.join(BUSY)


def test_who_only_looks_or_waits_writes_nothing(machines, server):
    limits, other = machines.limits("a", cap=1), machines.limits("b", cap=1)
    begin(limits, "a-1")
    waiter = in_background(lambda: begin(other, "b-1"))
    wait_for(lambda: machines.state.queue)
    before = server.value, server.writes
    reads = server.reads
    wait_for(lambda: server.reads > reads + 5)
    wait_for(limits.is_crowded)
    assert (server.value, server.writes) == before
    limits.release_slots(["a-1"])
    waiter.join(BUSY)
    assert held(machines) == ["b"]


def test_many_threads_of_many_machines_lose_nothing(machines):
    every = [machines.limits(run, owner, cap=3, timeout=120) for run in "abcd" for owner in ("gw0", "gw1")]
    live, most, lock = [0], [0], threading.Lock()

    def create(limits, name):
        for number in range(5):
            begin(limits, f"{name}-{number}")
            with lock:
                live[0] += 1
                most[0] = max(most[0], live[0])
            time.sleep(0.002)
            with lock:
                live[0] -= 1
            limits.release_slots([f"{name}-{number}"])

    threads = [in_background(lambda limits=limits, n=n: create(limits, f"n{n}")) for n, limits in enumerate(every)]
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert 1 < most[0] <= 3
    assert (machines.state.slots, machines.state.queue, machines.state.last) == ({}, (), 40)
    assert not any(store.outage.count for store in machines.stores.values())


def test_creations_that_begin_at_the_same_moment_are_told_apart(machines, server, monkeypatch):
    monkeypatch.setattr(shared_store, "PATIENCE", BUSY)
    limits, may_go = machines.limits("a"), threading.Event()
    limits.is_crowded()
    asked = threading.Event()
    server.fault = lambda: asked.set() or may_go.wait(BUSY)
    began = []
    in_background(lambda: machines.store("a").update(lambda state, _now: (state, None)))
    assert asked.wait(BUSY)
    threads = [in_background(lambda n=n: began.append(begin(limits, f"a-{n}").began)) for n in range(4)]
    wait_for(lambda: len(machines.store("a")._changes) == 4)
    may_go.set()
    for thread in threads:
        thread.join(BUSY)
    assert len(set(began)) == 4


def test_a_run_that_is_over_leaves_nothing(machines):
    limits = machines.limits("a", cap=1)
    begin(limits, "a-1")
    machines.store("a").close()
    state = machines.state
    assert (state.slots, state.queue, state.leases, state.vanished) == ({}, (), {}, {})


# the server fails


def test_a_server_that_is_down_at_the_start_leaves_local_limits(machines, server):
    server.go_down()
    limits = machines.limits("a", cap=1, timeout=0.3)
    begin(limits, "a-1")
    with pytest.raises(AnchorLimitError, match=r"1 of at most 1 are open \(1 by this run \[main\]\)"):
        begin(limits, "a-2")
    store = machines.store("a")
    assert (store.is_joined, store.joins, store.outage.count) == (False, 0, 1)
    assert store.outage.why == "ConnectionError: refused"


def test_what_was_known_locally_is_brought_along_when_the_server_is_back(machines, server):
    server.ahead = 1000.0
    server.go_down()
    limits = machines.limits("a", cap=2)
    begin(limits, "a-1")
    limits.record_rate_limited("a-x", 0.0, Limit(20.0, 5, 60.0))
    server.come_back()
    wait_for(lambda: machines.store("a").is_joined)
    assert held(machines) == ["a"]
    assert machines.state.quota == 5
    assert machines.state.until == pytest.approx(time.time() + 1000.0 + 20.0, abs=BUSY)
    limits.release_slots(["a-1"])
    assert held(machines) == []


def test_a_run_goes_on_with_what_it_holds_while_the_server_is_away(machines, server):
    limits, store = machines.limits("a", cap=2, timeout=0.5), machines.store("a")
    begin(limits, "a-1"), begin(limits, "a-2")
    server.go_down()
    with pytest.raises(AnchorLimitError, match="2 of at most 2 are open"):
        begin(limits, "a-3")
    limits.release_slots(["a-1"])
    begin(limits, "a-4")
    server.come_back()
    wait_for(lambda: store.is_joined)
    assert set(machines.state.slots) == {hide("a-2"), hide("a-4")}
    assert store.outage.count == 1
    assert 0.3 < store.outage.total < BUSY
    assert store.joins == 1, "its lease had not run out"


@pytest.mark.parametrize("value", [b"", b"garbage" * 10, b"\xff" * 100], ids=["flushed", "garbage", "no text"])
def test_a_server_that_has_lost_or_spoilt_the_state_gets_it_back(machines, server, value):
    limits = {run: machines.limits(run, cap=5) for run in "ab"}
    begin(limits["a"], "a-1"), begin(limits["b"], "b-1")
    server.value = value
    begin(limits["a"], "a-2")
    begin(limits["b"], "b-2")
    assert held(machines) == ["a", "a", "b", "b"]
    assert machines.store("a").joins == 1


def test_what_the_server_has_lost_of_others_comes_back_as_well(machines, server):
    """One of them may be gone, and must be missed; one that lives says itself what is not true any more."""
    limits = {run: machines.limits(run, cap=5) for run in "ab"}
    begin(limits["a"], "a-1"), begin(limits["b"], "b-1")
    limits["a"].store.update(lambda state, _now: (state, None))
    machines.store("a").read()
    limits["b"].release_slots(["b-1"])
    begin(limits["b"], "b-2")
    server.value = b""
    begin(limits["a"], "a-2")
    assert set(machines.state.leases) == {"a", "b"}
    limits["b"].store.update(lambda state, _now: (state, None))
    assert set(machines.state.slots) == {hide("a-1"), hide("a-2"), hide("b-2")}


def test_so_it_does_where_a_run_that_knew_nothing_was_the_first_to_come_back(machines, server):
    limits = {run: machines.limits(run, cap=5) for run in "ab"}
    begin(limits["a"], "a-1"), begin(limits["b"], "b-1")
    machines.store("a").update(lambda state, _now: (state, None))
    server.value = b""
    begin(machines.limits("c", cap=5), "c-1")
    begin(limits["a"], "a-2")
    assert set(machines.state.leases) == {"a", "b", "c"}
    assert held(machines) == ["a", "a", "b", "c"]
    assert machines.store("a").joins == 1


def test_a_server_that_falls_back_to_an_earlier_state_is_told_what_it_has_lost(machines, server):
    """Another has taken its place, which had not received the last changes yet."""
    limits = {run: machines.limits(run, cap=5) for run in "ab"}
    begin(limits["a"], "a-1"), begin(limits["b"], "b-1")
    earlier = server.value
    limits["a"].release_slots(["a-1"])
    begin(limits["a"], "a-2")
    server.value = earlier
    begin(limits["b"], "b-2")
    begin(limits["a"], "a-3")
    assert set(machines.state.slots) == {hide(name) for name in ("a-2", "a-3", "b-1", "b-2")}
    assert machines.store("a").joins == 1


def test_a_state_that_another_key_has_sealed_is_not_believed(machines, server):
    now = time.time()
    forged = State(slots={"x": Slot("a", "main")}, until=now + 100, set_at=now, touched=now)
    server.value = signed(forged, lambda *words: sign("another key", *words))
    begin(machines.limits("a", cap=1, timeout=2), "a-1")
    assert held(machines) == ["a"]


def test_a_server_that_does_not_answer_delays_a_creation_once(machines, server, monkeypatch):
    limits, store = machines.limits("a", cap=9), machines.store("a")
    begin(limits, "a-1")
    silent = threading.Event()
    server.fault = lambda: silent.wait(BUSY)
    start = time.monotonic()
    for number in range(2, 6):
        begin(limits, f"a-{number}")
    assert 0.9 < time.monotonic() - start < 1.0 + BUSY / 2
    assert store.outage.why == "no answer in time"
    server.fault = lambda: None
    silent.set()
    wait_for(lambda: store.is_joined)
    assert len(held(machines)) == 5


def test_what_the_server_did_too_late_counts_for_nothing(machines, server):
    """A change is given up, then made: the place in the queue that it took must not hold up the others."""
    one, other = machines.limits("a", cap=1, timeout=0.1), machines.limits("b", cap=1)
    begin(other, "b-1")
    one.is_crowded()
    late = threading.Event()
    server.after_replace = lambda: late.wait(BUSY)
    with pytest.raises(AnchorLimitError):
        for number in range(2):  # the local store has one slot, which is taken at the second
            begin(one, f"a-{number}")
    server.after_replace = lambda: None
    late.set()
    wait_for(lambda: machines.store("a").is_joined)
    other.release_slots(["b-1"])
    wait_for(lambda: not machines.state.queue)
    assert set(machines.state.slots) == {hide("a-0")}


def test_what_was_given_up_before_the_server_was_asked_is_not_made(machines, server):
    silent = threading.Event()
    server.fault = lambda: silent.wait(BUSY)
    begin(machines.limits("a", cap=1), "a-1")
    silent.set()
    wait_for(lambda: machines.store("a").is_joined)
    machines.store("a").update(lambda state, _now: (state, None))
    assert machines.state.last == 0, "the local store has given it its place"
    assert held(machines) == ["a"]


def test_a_server_that_fails_after_a_change_has_made_it_once(machines, server):
    limits, store = machines.limits("a", cap=3), machines.store("a")
    limits.is_crowded()

    def fail():
        server.after_replace = lambda: None
        raise ServerError("reset")

    server.after_replace = fail
    begin(limits, "a-1")
    wait_for(lambda: store.is_joined)
    assert set(machines.state.slots) == {hide("a-1")}
    assert machines.state.queue == ()


def test_an_earlier_state_does_not_say_who_has_vanished(machines, server):
    """A run that came back since must have the time to say so again, whoever has put that state there."""
    machines.lease = 600.0  # no run renews it by itself meanwhile
    one, other = machines.store("a"), machines.store("b")
    wait_for(lambda: set(machines.state.leases) == {"a", "b"})
    gone = machines.state.leases["b"]._replace(seen=1.0)
    now = time.time()
    taken = {"b": Vanished(gone, now - 1000.0, "a")}
    kept = {run: lease for run, lease in machines.state.leases.items() if run == "a"}
    earlier = signed(machines.state._replace(vanished=taken, leases=kept, touched=now), sign)
    begin(machines.limits("a", cap=1), "a-1")
    server.value = earlier
    assert not one.update(partial(leases.confirm, run="a", taken="b"))
    assert one.update(partial(leases.take_over, run="a")) == {}
    assert machines.state.vanished["b"].since == pytest.approx(now, abs=BUSY)
    other.update(lambda state, _now: (state, None))
    assert machines.state.vanished == {}


def test_a_server_on_which_others_are_always_faster_is_given_up(machines, server, monkeypatch):
    monkeypatch.setattr(shared_store, "ATTEMPTS", 3)
    monkeypatch.setattr(server, "replace", lambda _before, _value: False)
    begin(machines.limits("a", cap=1), "a-1")
    assert machines.store("a").outage.why == "other runs are always faster"


def test_an_error_of_our_own_keeps_no_caller_waiting(machines, server, monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(shared_store, "PATIENCE", 2 * BUSY)
    server.fault = fail
    start = time.monotonic()
    begin(machines.limits("a", cap=1), "a-1")
    assert time.monotonic() - start < BUSY
    assert "please report it" in machines.store("a").outage.why


# leases


def test_a_run_that_lives_keeps_its_lease_without_being_asked(tmp_path, server):
    machines = Machines(tmp_path, server, lease=1.0)
    try:
        begin(machines.limits("a", cap=1), "a-1")
        time.sleep(1.5)
        assert machines.store("a").joins == 1
        assert set(machines.state.leases) == {"a"}
    finally:
        machines.close()


def test_who_has_stood_still_for_longer_than_its_lease_knows_before_its_next_creation(machines, server, monkeypatch):
    """Its broker was stopped; others went on, freed its slots and took it over."""
    limits, store = machines.limits("a", cap=1), machines.store("a")
    begin(limits, "a-1")
    assert limits.is_current
    later = server.ahead = store.member.lasts + 1
    machines.store("b")
    wait_for(lambda: "b" in machines.state.leases)
    clock = shared_store.boot_time
    monkeypatch.setattr(shared_store, "boot_time", lambda: clock() + later)
    assert not limits.is_current
    state, now = machines.state, time.time() + later
    gone = {"a": Vanished(state.leases["a"], now, "b")}
    server.value = signed(state._replace(slots={}, leases={"b": state.leases["b"]}, vanished=gone, touched=now), sign)
    begin(machines.limits("b", cap=1), "b-1")
    with pytest.raises(AnchorLimitError):
        limits.timeout = 0.5
        begin(limits, "a-2")
    assert limits.is_current
    assert (store.joins, store.taken_by) == (2, "b")
    assert held(machines) == ["a", "b"], "what it had opened may live on"


def test_what_an_earlier_broker_of_the_run_has_begun_is_known(machines, server):
    begin(machines.limits("a", cap=4), "a-1"), begin(machines.limits("a", cap=4), "a-2")
    value = server.value
    machines.stores.pop("a").close()
    server.value = value
    machines.stores["a"] = store = shared_store.SharedStore(
        server, machines_local(machines), leases.Member("a", "id", "m", "", 30.0), sign, ["a-1"]
    )
    store.update(lambda state, _now: (state, None))
    assert set(machines.state.slots) == {hide("a-1")}, "the other is not on record any more"
    store.update(partial(rules.release_slots, nonces=["a-1"]))
    assert machines.state.slots == {}


def machines_local(machines):
    from pytest_anchor.budget.file_store import FileStore

    return FileStore(machines.folder, "b", "a", "")


# the parts


def test_the_header_is_another_for_each_value():
    values = {signed(State(touched=float(moment)), sign)[:HEADER] for moment in range(100)}
    assert len(values) == 100


@pytest.mark.parametrize(
    ("url", "text", "shown"),
    [
        ("redis://:s3cret@h:1", "AUTH s3cret failed", "AUTH *** failed"),
        ("redis://u:a%40b@h", "a@b a%40b", "*** ***"),
        ("redis://h?password=pw", "pw", "***"),
        ("unix:///s", "AUTH failed", "AUTH failed"),
    ],
)
def test_no_password_is_in_a_message(url, text, shown):
    assert redis_server.without_password(text, url) == shown
