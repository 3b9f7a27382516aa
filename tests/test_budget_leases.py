"""The leases of runs that share a server: state and time in, state and decision out."""

import pytest

from pytest_anchor.budget import leases, rules
from pytest_anchor.budget.leases import CREATION_TIMEOUT, FORGOTTEN_AFTER, Member
from pytest_anchor.budget.rules import Applicant
from pytest_anchor.budget.state import Lease, QueueEntry, Slot, State, Vanished, dump, parse

LEASE, GRACE = 30.0, 20.0  # seconds
GOOD = Lease(1.0, 30.0, "id", "machine")


class Server:
    """A state that runs share, and a clock that stands still until a test sets it."""

    def __init__(self):
        self.state = State()
        self.now = 1_000_000.0

    def renew(self, run, joins=0):
        member = Member(run, f"id-{run}", f"machine-of-{run}", "5", LEASE)
        self.state, presence = leases.renew(self.state, self.now, member, joins)
        return presence

    def admit(self, run, nonce, cap=0):
        self.renew(run)
        applicant = Applicant(nonce, f"ticket-{nonce}", 0, run, "main", f"test_{nonce}", cap, waited=0.0, remaining=1e6)
        self.state, decision = rules.try_admit(self.state, self.now, applicant)
        return decision

    def take_over(self, run):
        self.state, taken = leases.take_over(self.state, self.now, run)
        return taken

    def confirms(self, run, taken):
        self.state, holds = leases.confirm(self.state, self.now, run, taken)
        return holds

    def settle(self, run, taken):
        self.state, is_forgotten = leases.settle(self.state, self.now, run, taken)
        return is_forgotten

    def go_on(self, seconds, *living):
        """Let time pass, in which some runs renew their leases."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 5.0, end)
            for run in living:
                self.renew(run)


@pytest.fixture
def server():
    return Server()


def test_a_run_joins_once_and_renews_when_that_is_due(server):
    assert server.renew("a") == (True, "", 1)
    before = server.state
    server.now += LEASE / 6 - 1
    assert server.renew("a") == (False, "", 1)
    assert server.state == before, "nothing is written before that"
    server.now += 1
    assert server.renew("a") == (False, "", 1)
    assert server.state.leases["a"].until == server.now + LEASE


def test_what_a_vanished_run_has_is_free_once_its_lease_is_over(server):
    assert server.admit("a", "a1", cap=1).began is not None
    assert server.admit("b", "b1", cap=1).waits_for_slot
    server.go_on(LEASE - 1, "b")
    assert server.admit("b", "b1", cap=1).waits_for_slot
    server.go_on(2, "b")
    assert server.admit("b", "b1", cap=1).began is not None
    assert list(server.state.slots) == ["b1"]


def test_a_vanished_run_holds_up_the_queue_for_a_third_of_a_lease_and_loses_its_place_after_one(server):
    server.admit("c", "c1", cap=1)
    server.admit("a", "a1", cap=1), server.admit("b", "b1", cap=1)
    server.state, _ = rules.release_slots(server.state, server.now, ["c1"])
    server.go_on(LEASE / 3 - 1, "b")
    assert server.admit("b", "b1", cap=1).blocked_by == "queue"
    server.go_on(1, "b")
    assert server.admit("b", "b1", cap=1).began is not None
    assert [entry.run for entry in server.state.queue] == ["a"], "it keeps its place"
    server.go_on(LEASE, "b")
    assert server.state.queue == ()


def test_a_run_that_waits_needs_no_poll_to_keep_its_place(server):
    server.admit("a", "a1", cap=1), server.admit("a", "a2", cap=1), server.admit("b", "b1", cap=1)
    server.go_on(200, "a", "b")
    assert [entry.ticket for entry in server.state.queue] == ["ticket-a2", "ticket-b1"]


def test_slots_of_a_run_without_a_lease_count_for_nothing(server):
    server.state = State(slots={"x": Slot("strange", "main")})
    assert server.admit("a", "a1", cap=1).began is not None


# the server's own troubles


@pytest.mark.parametrize("gap", [60.0, 1e6])
def test_a_gap_in_which_no_run_has_written_costs_none_its_lease(server, gap):
    """The server was away, or its clock jumped ahead."""
    server.admit("a", "a1", cap=2), server.admit("b", "b1", cap=2)
    server.now += gap
    assert server.renew("a") == (False, "", 1)
    assert server.renew("b") == (False, "", 1)
    assert set(server.state.slots) == {"a1", "b1"}


def test_after_a_gap_the_lease_of_a_run_that_stays_away_runs_out_all_the_same(server):
    server.renew("a"), server.renew("b")
    server.now += 1e4
    server.go_on(LEASE + 6, "b")
    assert set(server.state.leases) == {"b"}


def test_a_clock_that_is_set_back_costs_no_run_its_lease_and_gives_none_more(server):
    server.renew("a"), server.renew("b")
    server.now -= 5000.0
    assert server.renew("b").has_joined is False
    assert server.state.leases["a"].until == server.now + LEASE
    server.go_on(LEASE + 1, "b")
    assert set(server.state.leases) == {"b"}


# taking over


def test_a_vanished_run_is_taken_over_by_one_run_after_a_while(server):
    for run in "abc":
        server.renew(run)
    server.go_on(LEASE + 5, "b", "c")
    assert server.take_over("b") == {}, "it may still show the API that it lives"
    server.go_on(GRACE, "b", "c")
    assert list(server.take_over("b")) == ["a"]
    assert server.take_over("c") == {}
    assert list(server.take_over("b")) == ["a"]
    assert server.confirms("b", "a")
    assert not server.confirms("c", "a")


def test_what_a_run_that_vanished_itself_had_taken_over_is_another_s(server):
    for run in "abc":
        server.renew(run)
    server.go_on(LEASE + GRACE + 5, "b", "c")
    server.take_over("b")
    server.go_on(LEASE + 5, "c")
    assert set(server.take_over("c")) == {"a"}
    server.go_on(GRACE, "c")
    assert set(server.take_over("c")) == {"a", "b"}


def test_what_a_run_that_is_over_had_taken_over_is_another_s_at_once(server):
    for run in "abc":
        server.renew(run)
    server.go_on(LEASE + GRACE + 5, "b", "c")
    server.take_over("b")
    server.state, _ = leases.leave(server.state, server.now, "b")
    assert set(server.take_over("c")) == {"a"}
    assert "b" not in {*server.state.leases, *server.state.vanished}, "it has not vanished"


def test_a_run_that_comes_back_is_taken_over_no_more_and_finds_out(server):
    for run in "ab":
        server.renew(run)
    server.go_on(LEASE + GRACE + 5, "b")
    server.take_over("b")
    assert server.renew("a") == (True, "b", 2)
    assert not server.confirms("b", "a")
    assert server.state.vanished == {}
    assert server.renew("a") == (False, "", 2)


def test_a_run_whose_lease_was_forgotten_joins_anew_by_its_own_count(server):
    assert server.renew("a", joins=4) == (True, "", 5)


def test_a_vanished_run_is_forgotten_once_nothing_of_it_can_come_to_be(server):
    for run in "ab":
        server.renew(run)
    server.go_on(LEASE + GRACE + 5, "b")
    server.take_over("b")
    assert not server.settle("b", "a")
    server.go_on(CREATION_TIMEOUT, "b")
    assert server.settle("b", "a")
    assert server.state.vanished == {}


def test_a_vanished_run_that_none_can_end_is_forgotten_in_the_end(server):
    for run in "ab":
        server.renew(run)
    server.go_on(LEASE + 5 + FORGOTTEN_AFTER, "b")
    assert server.state.vanished == {}


def test_what_a_state_has_lost_of_vanished_runs_is_brought_back_but_not_of_those_that_are_there():
    vanished = {run: Vanished(GOOD, 5.0, "x") for run in ("gone", "back")}
    known = State(leases={"a": GOOD}, vanished=vanished, slots={"n": Slot("a", "main"), "m": Slot("back", "main")})
    restored = leases.restore(State(leases={"back": GOOD}), 100.0, known)
    assert restored.vanished == {"gone": Vanished(GOOD, 100.0, "")}
    assert restored.leases == {"a": GOOD._replace(seen=100.0), "back": GOOD}
    assert list(restored.slots) == ["n"]


# what a store keeps


def test_leases_are_read_as_they_were_written(server):
    for run in "abc":
        server.renew(run)
    server.go_on(LEASE + GRACE + 5, "b", "c")
    server.take_over("b")
    assert parse(dump(server.state)) == server.state


@pytest.mark.parametrize(
    "lease",
    [
        GOOD._replace(seen=-1.0),
        GOOD._replace(seen="1"),
        GOOD._replace(lasts=1e9),
        GOOD._replace(run_id="a,b"),
        GOOD._replace(machine=None),
        GOOD._replace(machine="x" * 101),
        GOOD._replace(joins=1.5),
        GOOD._replace(joins=True),
        GOOD._replace(writes=0.5),
    ],
)
def test_a_lease_that_is_odd_makes_the_state_an_empty_one(lease):
    assert parse(dump(State(leases={"a": GOOD}, vanished={"b": Vanished(GOOD, 1.0)}))).leases
    assert parse(dump(State(leases={"a": lease}))) == State()
    assert parse(dump(State(vanished={"a": Vanished(lease, 1.0)}))) == State()


def test_any_run_id_and_any_owner_that_a_run_may_have_is_read_again():
    state = State(
        slots={"n": Slot("inv.gw0", ".gw0")},
        queue=(QueueEntry(1, "t", "inv.gw0", ".", "test", 1.0, 1.0),),
        leases={"inv.gw0": GOOD._replace(run_id="..x" + "9" * 97)},
    )
    assert parse(dump(state)) == state


@pytest.mark.parametrize("state", [State(leases={"../a": GOOD}), State(vanished={"a": Vanished(GOOD, 1.0, "../b")})])
def test_so_does_a_run_s_name(state):
    assert parse(dump(state)) == State()
