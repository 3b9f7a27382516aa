"""Creations that wait for their turn, in the threads and processes of several owners that share a registry."""

import multiprocessing
import re
import time

import pytest
from limited_owners import BUSY, Registry, begin, in_background, wait_for

from pytest_anchor.budget import admission, rules
from pytest_anchor.budget.rules import MARGIN
from pytest_anchor.errors import AnchorLimitError, Limit


@pytest.fixture
def registry(tmp_path):
    with Registry(tmp_path / ".pytest_anchor") as registry:
        yield registry


# the rate


def test_a_429_pauses_every_owner_until_the_time_it_tells(registry):
    one, other = registry.owner("gw0"), registry.owner("gw1")
    first = begin(one)
    one.record_rate_limited("n", first.began, Limit(1.0, None, None))
    start = time.time()
    waits = [in_background(lambda limits=limits: begin(limits)) for limits in (one, other)]
    time.sleep(0.8)
    assert all(wait.is_alive() for wait in waits)
    for wait in waits:
        wait.join(BUSY)
    assert 1.0 <= registry.state["until"] - start + 0.1 <= 1.0 + 0.1 + 0.2, "with jitter, but little"


def test_a_policy_paces_what_comes_after(registry):
    owners = [registry.owner(f"gw{n}") for n in range(3)]
    first = begin(owners[0])
    owners[0].record_rate_limited("n", first.began, Limit(0.2, 3, 0.5))
    began = []

    def create_four(limits):
        began.extend([begin(limits).began for _ in range(4)])

    threads = [in_background(lambda limits=limits: create_four(limits)) for limits in owners]
    for thread in threads:
        thread.join(BUSY + 5)
    began.sort()
    assert len(began) == 12
    assert all(later - sooner >= 0.5 for sooner, later in zip(began, began[3:], strict=False))
    assert began[-1] - began[0] < 3 * (0.5 + MARGIN) + BUSY


def test_waiting_that_would_take_too_long_is_refused_at_once(registry):
    limits = registry.owner(timeout=5)
    limits.record_rate_limited("n", 0.0, Limit(60.0, 5, 60.0))
    start = time.monotonic()
    with pytest.raises(AnchorLimitError) as caught:
        begin(limits)
    assert time.monotonic() - start < 4
    assert "t.py::x" in str(caught.value)
    assert "the API allows 5 creations in 60 s" in str(caught.value)
    assert "--anchor-create-timeout" in str(caught.value)
    assert registry.state["queue"] == []


def test_a_killed_waiter_delays_nobody(registry, monkeypatch):
    monkeypatch.setattr(rules, "HEARTBEAT_TIMEOUT", 1.0)
    limits = registry.owner(timeout=30)
    limits.record_rate_limited("n", 0.0, Limit(2.0, 1, 60.0))
    waiter = registry.owner("gw7")
    process = multiprocessing.get_context("fork").Process(target=lambda: begin(waiter))
    process.start()
    wait_for(lambda: registry.state["queue"])
    process.kill()
    process.join()
    begun = begin(limits).began
    assert begun - registry.state["until"] < 2 + BUSY / 2


# the cap


def test_first_asked_first_served_over_all_owners(registry):
    owners = [registry.owner(f"gw{n}", run=f"inv{n % 2}", cap=1) for n in range(4)]
    begin(owners[0], "n0")
    order = []

    def wait(number):
        begin(owners[number], f"n{number}")
        order.append(number)

    threads = []
    for number in (2, 1, 3):
        threads.append(in_background(lambda number=number: wait(number)))
        wait_for(lambda: len(registry.state["queue"]) == len(threads))
    for number in (0, 2, 1):
        before = len(order)
        owners[number].release_slots([f"n{number}"])
        wait_for(lambda before=before: len(order) > before)
    assert order == [2, 1, 3]


def test_the_slots_of_the_dead_are_free_when_their_sessions_are_over(registry):
    limits = registry.owner("main", cap=2, timeout=0.3)
    dead = registry.owner("gw0", cap=2)
    run = registry.runs["inv"]
    values = {
        "owner": "gw0",
        "test": "t",
        "time": 1.0,
        "base_url": "u",
        "fingerprint": "f",
        "run_id": "r",
        "folder_inode": 1,
    }
    for nonce in ("inv-a", "inv-b"):
        begin(dead, nonce)
        run.append("intent", nonce, **values)
        run.append("created", nonce, id=nonce, signature="s")
    with pytest.raises(AnchorLimitError, match=r"\(2 by this run \[gw0\]\); --anchor-create-timeout"):
        begin(limits)
    registry.dead.add(("inv", "gw0"))
    with pytest.raises(AnchorLimitError, match=r"2 by this run \[gw0\], which is over; its run tries to end"):
        begin(limits)
    run.append("ended", "inv-a", ended_by="sweep", already=False)
    begin(limits)


def test_the_slots_of_a_creation_that_a_dead_process_never_recorded_are_free(registry):
    limits = registry.owner("main", cap=1, timeout=0.3)
    begin(registry.owner("gw0", cap=1), "inv-a")
    registry.dead.add(("inv", "gw0"))
    begin(limits)


def test_the_slots_of_a_run_that_is_gone_are_free(registry):
    limits, folder = registry.owner("main", cap=1, timeout=0.3), re.escape(str(registry.folder))
    begin(registry.owner("main", run="other", cap=1), "other-n")
    run = registry.runs["other"]
    run.append(
        "intent", "other-n", owner="main", test="", time=1, base_url="", fingerprint="", run_id="", folder_inode=1
    )
    run.append("created", "other-n", id="x", signature="s")
    with pytest.raises(AnchorLimitError, match=r"\(1 by another run \[main\]\); --anchor-create-timeout"):
        begin(limits)
    run.leave()
    with pytest.raises(
        AnchorLimitError,
        match=rf"another run \[main\], which died: python -m pytest_anchor sweep --base-url http://b --registry {folder} ends",
    ):
        begin(limits)
    run.remove()
    begin(limits)


def test_a_test_that_holds_all_it_waits_for_is_told_at_once(registry):
    limits = registry.owner(cap=2)
    begin(limits, "a"), begin(limits, "b")
    start = time.monotonic()
    with pytest.raises(AnchorLimitError, match="itself, or a fixture around it, holds all 2 of them"):
        begin(limits, "c", self_blocked=True)
    assert time.monotonic() - start < BUSY


def test_tests_that_wait_for_each_other_are_told_and_one_gives_way(registry):
    owners = [registry.owner(f"gw{n}", cap=2, timeout=20) for n in range(2)]
    outcomes = {}

    def hold_and_want(number):
        try:
            begin(owners[number], f"b{number}", self_blocked=True, test=f"test_{number}")
            outcomes[number] = ""
        except AnchorLimitError as error:
            outcomes[number] = str(error)
            owners[number].release_slots([f"a{number}"])

    for number, limits in enumerate(owners):
        begin(limits, f"a{number}")
    threads = [in_background(lambda number=number: hold_and_want(number)) for number in range(2)]
    for thread in threads:
        thread.join(BUSY)
    assert sorted(map(bool, outcomes.values())) == [False, True]
    told = "".join(outcomes.values())
    assert "test_0 [gw0] holds 1, test_1 [gw1] holds 1" in told or "test_1 [gw1] holds 1, test_0 [gw0]" in told


def test_a_test_that_holds_the_only_one_reads_so(registry):
    limits = registry.owner(cap=1)
    begin(limits, "a")
    with pytest.raises(
        AnchorLimitError, match="it would have to wait .* holds the only one, and would wait for itself"
    ):
        begin(limits, "b", self_blocked=True)


def test_processes_of_one_name_as_a_test_forks_them_wait_for_each_other(registry):
    own, *forks = (registry.owner(cap=1) for _ in range(3))

    def hold(limits, nonce, seconds):
        begin(limits, nonce, self_blocked=True)
        time.sleep(seconds)
        limits.release_slots([nonce])

    begin(own, "own")
    threads = [in_background(lambda limits=limits, n=n: hold(limits, f"n{n}", 0.3)) for n, limits in enumerate(forks)]
    wait_for(lambda: len(registry.state["queue"]) == 2)
    time.sleep(0.3)
    own.release_slots(["own"])
    hold(own, "later", 0)
    for thread in threads:
        thread.join(BUSY)
        assert not thread.is_alive()
    assert registry.state["slots"] == {}, "one of them was told that it would wait for itself"


def test_processes_that_share_a_cap_lose_nothing(registry):
    fork = multiprocessing.get_context("fork")
    owners = [registry.owner(f"gw{number}", cap=3, timeout=120) for number in range(8)]
    live, most = fork.Value("i", 0), fork.Value("i", 0)

    def create_ten(limits, name):
        for number in range(10):
            begin(limits, f"{name}-{number}")
            with live.get_lock():
                live.value += 1
                most.value = max(most.value, live.value)
            time.sleep(0.005)
            with live.get_lock():
                live.value -= 1
            limits.release_slots([f"{name}-{number}"])

    children = [fork.Process(target=create_ten, args=(limits, f"n{n}")) for n, limits in enumerate(owners)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert 1 < most.value <= 3
    assert (registry.state["slots"], registry.state["queue"], registry.state["last"]) == ({}, [], 80)


def test_what_is_on_its_way_to_its_end_is_waited_for(registry):
    limits = registry.owner(cap=1)
    begin(limits, "a")
    limits.mark_slots(["a"], "ending")
    waiter = in_background(lambda: begin(limits, "b", self_blocked=True))
    time.sleep(0.5)
    assert waiter.is_alive()
    limits.release_slots(["a"])
    waiter.join(BUSY)
    assert not waiter.is_alive()


def test_the_error_says_who_holds_what(registry):
    limits, other = registry.owner("gw0", cap=3, timeout=0.3), registry.owner("gw1", cap=3)
    begin(limits, "a"), begin(other, "b"), begin(other, "c")
    other.mark_slots(["c"], "ending")
    with pytest.raises(AnchorLimitError) as caught:
        begin(limits, "d")
    assert "3 of at most 3 are open" in str(caught.value)
    assert "1 by this run [gw0]; 1 by this run [gw1]; 1 by this run [gw1], which could not be ended" in str(
        caught.value
    )


def test_a_cap_beyond_all_measure_is_one_that_the_file_can_hold(registry):
    limits = registry.owner(cap=10**30, timeout=0.2)
    assert limits.cap == rules.MAX_CAP
    limits.record_rate_limited("x", 0.0, Limit(0.1, None, None))
    waiter = in_background(lambda: begin(registry.owner("gw0", cap=10**30)))
    wait_for(lambda: registry.state["queue"])
    limits.release_slots(["y"])
    waiter.join(BUSY)
    assert list(registry.state["slots"]) == ["n"]


# while a creation waits


def test_between_its_looks_it_calls_back_whatever_it_waits_for(registry):
    limits = registry.owner(cap=1)
    calls = []
    limits.record_rate_limited("x", 0.0, Limit(0.4, None, None))
    begin(limits, "a", between_polls=lambda **_: calls.append("rate"))
    waiter = in_background(lambda: begin(limits, "b", between_polls=lambda **_: calls.append("cap")))
    wait_for(lambda: "cap" in calls)
    limits.release_slots(["a"])
    waiter.join(BUSY)
    assert "rate" in calls


def test_what_the_callback_raises_ends_the_wait_and_leaves_the_queue(registry):
    class WithdrawnError(Exception):
        pass

    def withdraw(**_: object):
        raise WithdrawnError

    limits = registry.owner(cap=1)
    begin(limits, "a")
    start = time.monotonic()
    with pytest.raises(WithdrawnError):
        begin(limits, "b", between_polls=withdraw)
    assert time.monotonic() - start < BUSY
    assert registry.state["queue"] == []
    assert list(registry.state["slots"]) == ["a"]


def test_what_is_waited_for_is_reported_once_it_takes_long(registry, monkeypatch):
    monkeypatch.setattr(admission, "REPORT_AFTER", 0.3)
    limits, reports = registry.owner(cap=1, timeout=1), []
    begin(limits, "a", report_wait=lambda text: reports.append(("a", text)))
    start = time.monotonic()
    with pytest.raises(AnchorLimitError):
        begin(limits, "b", test="t.py::b", report_wait=lambda text: reports.append((time.monotonic() - start, text)))
    assert min(when for when, _ in reports) > 0.3
    assert {text for _, text in reports} == {"t.py::b waits for a session to end: 1 of at most 1 are open"}
