"""The rules of rate, cap and queue: no file, no clock, no waiting."""

import dataclasses

import pytest

from pytest_anchor.budget import rules
from pytest_anchor.budget.rules import BACKOFF, HEARTBEAT_TIMEOUT, MARGIN, MAX_BACKOFF, TRUSTED_FOR, Applicant, Holding
from pytest_anchor.budget.state import Slot, State, dump, parse
from pytest_anchor.errors import Limit


class Account:
    """The state of an account, and a clock that stands still until a test sets it."""

    def __init__(self) -> None:
        self.state = State()
        self.now = 1_000_000.0
        self._asked = {}  # applicants, by their nonces

    def admit(self, nonce="n", owner="main", cap=0, **values):
        """Poll for a creation, as often as it is called with its nonce."""
        new = Applicant(nonce, f"ticket-{nonce}", 0, "inv", owner, f"test_{nonce}", cap, waited=0.0, remaining=1e6)
        applicant = dataclasses.replace(self._asked.get(nonce, new), **values)
        self.state, decision = rules.try_admit(self.state, self.now, applicant)
        self._asked[nonce] = dataclasses.replace(applicant, number=decision.number)
        return decision

    def admits(self, nonce="n", owner="main", cap=0, **values):
        return self.admit(nonce, owner, cap, **values).began is not None

    def admits_ahead(self, nonce, cap=0):
        self.state, began = rules.try_admit_ahead(
            self.state, self.now, nonce=nonce, slot=Slot("inv", "main", "ahead"), cap=cap
        )
        return began is not None

    def meet_429(self, limit, nonce="n", began=0.0, chance=0.0):
        """Take in an answer; returns for how long creations wait."""
        self.state, _ = rules.record_rate_limited(
            self.state, self.now, nonce=nonce, began=began, limit=limit, chance=chance
        )
        return self.state.until - self.now

    def release(self, *nonces):
        self.state, _ = rules.release_slots(self.state, self.now, nonces)

    def mark(self, use, *nonces):
        self.state, _ = rules.mark_slots(self.state, self.now, nonces, use)


@pytest.fixture
def account():
    return Account()


# the rate


def test_with_nothing_known_every_creation_begins_at_once(account):
    assert all(account.admits(f"n{number}") for number in range(100))
    assert account.state == State(last=100)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_a_429_pauses_all_until_the_time_it_tells(account, chance):
    wait = account.meet_429(Limit(10.0, None, None), chance=chance)
    assert wait == pytest.approx(10.0 + chance)
    decision = account.admit(owner="gw1")
    assert (decision.began, decision.blocked_by) == (None, "rate")
    assert decision.starts_in == pytest.approx(wait)
    account.now += wait
    assert account.admits(owner="gw1")


@pytest.mark.parametrize(("wait", "most"), [(1.0, 0.1), (5.0, 0.5), (600.0, 1.0)])
def test_jitter_is_little(account, wait, most):
    assert account.meet_429(Limit(wait, None, None), chance=1.0) == pytest.approx(wait + most)


def test_a_policy_paces_what_comes_after(account):
    account.meet_429(Limit(0.0, 3, 60.0))
    account.now = start = account.state.until
    assert [account.admits(f"n{number}") for number in range(4)] == [True, True, True, False]
    account.now = start + 60.0
    assert not account.admits("n3"), "requests overtake each other on their way"
    account.now = start + 60.0 + MARGIN
    assert account.admits("n3")


def test_a_refused_creation_uses_nothing_up(account):
    account.meet_429(Limit(0.0, 1, 60.0))
    account.now += BACKOFF
    began = account.admit().began
    account.meet_429(Limit(0.0, 1, 60.0), began=began)
    assert account.state.starts == ()
    account.now += 2 * BACKOFF
    assert account.admits("m")


@pytest.mark.parametrize("told", [0.0, None])
def test_an_api_that_tells_no_time_is_waited_for_longer_each_time(account, told):
    for number in range(9):
        wait = account.meet_429(Limit(told, None, None))
        assert wait == pytest.approx(min(BACKOFF * 2**number, MAX_BACKOFF))
        account.now += wait
    account.state, _ = rules.record_success(account.state, account.now)
    assert account.state.misses == 0


def test_answers_to_what_was_under_way_at_the_first_429_are_no_news(account):
    assert {account.meet_429(Limit(None, None, None)) for _ in range(16)} == {BACKOFF}


def test_a_policy_without_a_time_is_waited_for_as_a_window(account):
    assert account.meet_429(Limit(None, 5, 60.0)) == pytest.approx(60.0)


def test_a_429_that_tells_nothing_is_no_matter_of_a_window_known_before(account):
    account.now += account.meet_429(Limit(0.0, 5, 60.0))
    assert account.meet_429(Limit(None, None, None)) == pytest.approx(2 * BACKOFF)
    assert account.state.quota == 5


def test_waiting_that_would_take_too_long_is_refused_at_once(account):
    account.meet_429(Limit(60.0, 5, 60.0))
    decision = account.admit(remaining=5.0)
    assert decision.is_too_late
    assert decision.is_hopeless
    assert (decision.starts_in, decision.quota, decision.window) == (60.0, 5, 60.0)
    assert not account.admit(remaining=61.0).is_hopeless


def test_what_is_told_is_believed_for_an_hour(account):
    account.meet_429(Limit(0.1, 1, TRUSTED_FOR - 1.0))
    account.now += 1.0
    assert account.admits("a")
    account.now += TRUSTED_FOR - 1.5  # the policy is trusted still, and the window not over
    assert not account.admits("b")
    account.now += 1.0
    assert account.admits("b")


@pytest.mark.parametrize("change", [-7200, -1800, -5, 7200])
def test_a_clock_that_jumps_holds_no_creation_for_longer_than_it_would_have(account, change):
    account.meet_429(Limit(15.0, 1, 15.0))
    account.now += 15.0
    assert account.admits("a")
    account.now += change
    decision = account.admit("b")
    assert decision.began is not None or decision.starts_in <= 15.0 + MARGIN


# the queue


def test_first_asked_first_served_over_all_owners(account):
    account.admit("held", cap=1)
    asked = ["c", "a", "b"]
    assert not any(account.admits(nonce, owner=f"gw-{nonce}", cap=1) for nonce in asked)
    previous = "held"
    for nonce in asked:
        account.release(previous)
        others = [other for other in asked[asked.index(nonce) + 1 :] if account.admits(other)]
        assert others == []
        assert account.admits(nonce)
        previous = nonce


def test_only_the_first_in_the_queue_polls_often(account):
    account.admit("held", cap=1)
    polls = [account.admit(f"n{number}", cap=1).poll_in for number in range(20)]
    assert polls == sorted(polls)
    assert (polls[0], polls[-1]) == (rules.FIRST_POLL_INTERVAL, rules.POLL_INTERVAL)


def test_an_entry_that_is_not_polled_any_more_holds_up_nothing(account):
    account.admit("held", cap=1)
    account.admit("dead", cap=1)
    account.now += HEARTBEAT_TIMEOUT - 0.1
    account.release("held")
    decision = account.admit("n", cap=1)
    assert (decision.began, decision.blocked_by) == (None, "queue")
    account.now += 0.1
    assert account.admits("n", cap=1)
    account.now += 10 * HEARTBEAT_TIMEOUT
    account.release("n")
    account.admit("m", cap=1)
    assert account.state.queue == ()


def test_what_waits_as_the_store_begins_anew_stays_before_what_comes_later(account):
    account.state = State(last=5)
    account.admit("held", cap=1)
    account.admit("sooner", cap=1)
    account.state = State(slots=account.state.slots)
    assert account.admit("sooner", cap=1).number < account.admit("later", cap=1).number


def test_a_place_is_kept_for_all_attempts_of_a_creation(account):
    account.admit("held", cap=1)
    numbers = [account.admit("a", cap=1).number, account.admit("b", cap=1).number]
    account.state, _ = rules.leave_queue(account.state, account.now, "ticket-a", "a")
    assert [entry.ticket for entry in account.state.queue] == ["ticket-b"]
    assert [account.admit("a", cap=1).number, account.admit("b", cap=1).number] == numbers
    assert [entry.ticket for entry in account.state.queue] == ["ticket-a", "ticket-b"]


# the cap


def test_an_owner_with_a_smaller_cap_does_not_hold_up_the_others(account):
    account.admit("n0", owner="gw0", cap=1)
    assert not account.admits("n1", owner="gw0", cap=1)
    assert account.admits("n2", owner="gw1", cap=2)
    account.release("n0")
    assert not account.admits("n1", owner="gw0", cap=1)
    account.release("n2")
    assert account.admits("n1", owner="gw0", cap=1)


def test_what_is_over_though_its_process_died_frees_its_slots(account):
    account.admit("a", owner="gw0", cap=2), account.admit("b", owner="gw0", cap=2)
    decision = account.admit("c", cap=2)
    assert (decision.blocked_by, sorted(decision.slots)) == ("slot", ["a", "b"])
    assert account.admits("c", cap=2, over=["a", "unknown"])
    assert sorted(account.state.slots) == ["b", "c"]


def test_a_test_that_holds_all_it_waits_for_is_told_at_once(account):
    account.admit("a", cap=2), account.admit("b", cap=2)
    assert not account.admit("c", cap=2, begun={"a", "b"}).is_hopeless, "a thread of it may end one"
    decision = account.admit("c", cap=2, self_blocked=True, begun={"a", "b"})
    assert (decision.deadlock, decision.holdings) == ("own", (Holding("test_c", "main", 2),))


def test_tests_that_wait_for_each_other_are_told_and_one_gives_way(account):
    for owner in ("gw0", "gw1"):
        account.admit(f"held-{owner}", owner=owner, cap=2)
    decisions = [
        account.admit(f"n-{owner}", owner=owner, cap=2, self_blocked=True, begun={f"held-{owner}"})
        for owner in ("gw0", "gw1", "gw0")
    ]
    assert [decision.deadlock for decision in decisions] == ["", "mutual", ""]
    assert decisions[1].holdings == (Holding("test_n-gw0", "gw0", 1), Holding("test_n-gw1", "gw1", 1))


def test_a_test_that_died_while_it_waited_blocks_no_other(account):
    for owner in ("gw0", "gw1"):
        account.admit(f"held-{owner}", owner=owner, cap=2)
        account.admit(f"n-{owner}", owner=owner, cap=2, self_blocked=owner == "gw0", begun={f"held-{owner}"})
    account.now += HEARTBEAT_TIMEOUT
    assert not account.admit("n-gw1", owner="gw1", cap=2, self_blocked=True).is_hopeless


def test_processes_of_one_name_as_a_test_forks_them_wait_for_each_other(account):
    account.admit("a", cap=1)
    assert not account.admit("b", cap=1, self_blocked=True, begun=set()).is_hopeless, "another process began a"


@pytest.mark.parametrize("use", ["ahead", "ending"])
def test_what_no_test_needs_to_end_is_waited_for(account, use):
    account.admit("a", cap=1)
    account.mark(use, "a", "unknown")
    blocked = {"cap": 1, "self_blocked": True, "begun": {"a"}}
    assert not account.admit("b", **blocked).is_hopeless
    account.mark("", "a")
    assert account.admit("b", **blocked).is_hopeless


def test_it_is_crowded_while_a_creation_waits_for_a_slot(account):
    account.admit("a", cap=1)
    assert not rules.is_crowded(account.state, account.now)
    account.admit("b", cap=1)
    assert rules.is_crowded(account.state, account.now)
    assert not rules.is_crowded(account.state, account.now + HEARTBEAT_TIMEOUT)


# ahead of the tests


def test_what_no_test_waits_for_begins_only_where_it_is_in_no_tests_way(account):
    assert account.admits_ahead("a", cap=2)
    assert account.state.slots["a"].use == "ahead"
    account.admit("b", cap=2)
    assert not account.admits_ahead("c", cap=2), "full"
    account.admit("d", cap=2)
    account.release("a")
    assert not account.admits_ahead("c", cap=2), "a test waits"
    assert account.admits("d", cap=2)
    account.release("b")
    account.meet_429(Limit(30.0, None, None), nonce="x")
    assert not account.admits_ahead("c", cap=2), "the API asked to wait"


@pytest.mark.parametrize(("quota", "ahead"), [(1, 0), (2, 1), (5, 2)])
def test_half_of_what_a_window_allows_is_left_to_the_tests_own(account, quota, ahead):
    account.now += account.meet_429(Limit(0.0, quota, 600.0))
    assert [account.admits_ahead(f"a{n}") for n in range(quota)] == [True] * ahead + [False] * (quota - ahead)
    assert all(account.admits(f"b{n}") for n in range(quota - ahead))
    assert not account.admits("c")


# where the store failed for a while


def of_gw0(_nonce, holder):
    return holder.owner == "gw0"


def test_an_owner_without_the_store_knows_its_own_only(account):
    account.admit("a", owner="gw0", cap=2), account.admit("b", owner="gw1", cap=2)
    account.admit("c", owner="gw0", cap=2), account.admit("d", owner="gw1", cap=2)
    own = rules.keep_own(account.state, of_gw0)
    assert list(own.slots) == ["a"]
    assert [entry.ticket for entry in own.queue] == ["ticket-c"]


def test_an_owner_that_comes_back_brings_its_own_slots_and_what_is_newer(account):
    shared = State(slots={"a": Slot("inv", "gw0"), "b": Slot("inv", "gw1")}, until=5.0, set_at=1.0, misses=1)
    known = State(
        slots={"c": Slot("inv", "gw0", "ending"), "b": Slot("inv", "gw1", "ahead")},
        until=9.0,
        set_at=2.0,
        misses=3,
        quota=5,
        window=60.0,
        learned=2.0,
        starts=(1.0,),
    )
    merged = rules.merge(shared, known, of_gw0)
    assert merged.slots == {"b": Slot("inv", "gw1"), "c": Slot("inv", "gw0", "ending")}
    assert merged._replace(slots={}) == known._replace(slots={})
    assert rules.merge(known, shared, of_gw0)._replace(slots={}) == known._replace(slots={})


# what a store keeps


def test_a_state_is_read_as_it_was_written(account):
    account.meet_429(Limit(0.0, 5, 60.0))
    account.now += BACKOFF
    account.admit("a", cap=1), account.admit("b", cap=1, self_blocked=True)
    account.mark("ending", "a")
    text = dump(account.state)
    assert b"\n" not in text
    assert parse(text) == account.state


@pytest.mark.parametrize("text", [b"", b"null", b'{"slots":{},"queue":[]', b'{"slots":{},"queue":[],"until":-1}'])
def test_anything_else_is_an_empty_state(text):
    assert parse(text) == State()
