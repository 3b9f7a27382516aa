"""What the others do about a run whose machine has vanished, and leave undone about one that lives."""

import threading
import time

import fault_server as fs
import pytest
from fault_server import KEY
from limited_owners import BUSY, wait_for
from memory_server import MemoryServer, Route
from settings_for import settings_for

from pytest_anchor.api import AnchorAPI
from pytest_anchor.broker import owner as owner_module
from pytest_anchor.broker import sharing as sharing_module
from pytest_anchor.broker.owner import Owner, Request
from pytest_anchor.broker.sharing import Sharing
from pytest_anchor.budget import leases, shared_store
from pytest_anchor.budget.shared_store import verified
from pytest_anchor.errors import AnchorAPIError
from pytest_anchor.registry.journal import Run
from pytest_anchor.tags import Sign, new_nonce, new_tag, nonce_of, run_tag, sign_of, with_sign

LEASE = 0.6  # seconds
pytestmark = pytest.mark.slow


class Machine:
    """A machine with a run on it, which shares its limits with the others."""

    def __init__(self, name, folder, store, server):
        self.name = name
        self.server = server
        self.route = Route(store)
        self.run = Run(folder / name / ".pytest_anchor" / name)
        self.run.join()
        self.settings = settings_for(
            self.run.folder,
            run_id="ci-7",
            base_url=server.url,
            api_key=KEY,
            shared_limits="redis://h",
            shared_lease=LEASE,
            shard=name[-1],
        )
        self.api = AnchorAPI(server.url, KEY)
        self.sharing = Sharing(self.settings, self.run, self.api)
        self.owner = Owner("main", self.settings, self.run, self.api, 50, sharing=self.sharing)

    @property
    def store(self):
        return self.sharing.store

    @property
    def summary(self):
        return [line.text for line in self.sharing.lines()]

    def create(self):
        return self.owner.create({}, Request("t")).record.id

    def alive(self):
        """The sessions of the run that live."""
        return [one.id for one in self.server.sessions.values() if one.alive and nonce_of(tuple(one.tags), self.name)]

    def vanish(self):
        """What the others see of a machine that is gone: nothing any more."""
        self.route.is_cut = True
        self.sharing._closed.set()

    def close(self):
        self.owner.finish(5.0)
        self.sharing.close()
        self.run.leave()


@pytest.fixture
def start(tmp_path, server, quick, monkeypatch):
    store, machines = MemoryServer(), []
    monkeypatch.setattr(shared_store, "RETRY_INTERVAL", 0.05)
    monkeypatch.setattr(sharing_module, "LOOK_AGAIN", 0.1)

    def start(name):
        monkeypatch.setattr(sharing_module, "RedisServer", lambda _url, _key: machine_route())

        def machine_route():
            return route

        route = Route(store)
        machine = Machine(name, tmp_path, store, server)
        machine.route = route
        machine.sees = lambda: verified(store.value, machine.api.sign)
        machines.append(machine)
        wait_for(lambda: machine.store.is_joined)
        return machine

    yield start
    for machine in machines:
        machine.close()


def test_the_sessions_of_a_machine_that_vanished_are_ended_once_and_that_is_said(start, server):
    gone, one, other = start("run-5"), start("run-1"), start("run-2")
    mine = one.create()
    ids = [gone.create() for _ in range(3)]
    stranger = server.add("pytest-anchor", run_tag("ci-7"), new_tag(new_nonce("run-55")))
    gone.vanish()
    start_of_it = time.monotonic()
    wait_for(lambda: not gone.alive())
    assert time.monotonic() - start_of_it > LEASE * (1 + leases.GRACE_SHARE) - LEASE / 6
    assert set(server.alive) == {mine, stranger}
    wait_for(lambda: len(one.summary + other.summary) == 1)
    assert one.summary + other.summary == [
        f"recovered 3 sessions of {sharing_module.describe_run(lease_of(gone))}, whose machine vanished"
    ]
    assert sharing_module.describe_run(lease_of(gone)).startswith("shard 5 (")
    assert sum(server.count("DELETE", f"/v1/sessions/{one}") for one in ids) == 3


def lease_of(machine):
    member = machine.store.member
    return leases.Lease(0.0, LEASE, member.run_id, member.machine, member.shard)


def test_what_it_had_created_at_its_last_is_found_as_well(start, server, monkeypatch):
    gone, one = start("run-5"), start("run-1")
    gone.create()
    gone.vanish()
    wait_for(lambda: not gone.alive())
    server.add("pytest-anchor", run_tag("ci-7"), new_tag(new_nonce("run-5")))
    wait_for(lambda: not gone.alive())
    wait_for(lambda: any("recovered 2 sessions" in line for line in one.summary))
    assert "run-5" in one.sees().vanished, "it may have more"
    monkeypatch.setattr(leases, "CREATION_TIMEOUT", 0.1)
    wait_for(lambda: "run-5" not in one.sees().vanished)


def test_an_end_that_fails_is_tried_again(start, server):
    gone, one = start("run-5"), start("run-1")
    gone.create()
    server.fail("DELETE", fs.status(403))
    gone.vanish()
    wait_for(lambda: not gone.alive())
    wait_for(lambda: any("recovered 1 session " in line for line in one.summary))


def test_when_the_run_that_ends_them_vanishes_too_another_goes_on(start, server):
    gone, one = start("run-5"), start("run-1")
    gone.create()
    hold = server.held["DELETE"] = threading.Event()
    gone.vanish()
    wait_for(lambda: server.busy)
    other = start("run-2")
    one.vanish()
    wait_for(lambda: other.sees().vanished.get("run-5") and other.sees().vanished["run-5"].taker == "run-2")
    hold.set()
    wait_for(lambda: not gone.alive())


# a run that lives


def test_a_run_that_is_cut_off_from_the_server_shows_the_api_that_it_lives(start, server):
    cut, other = start("run-5"), start("run-1")
    before = cut.create()
    server.sessions[before].tags.append("mine")
    cut.route.is_cut = True
    wait_for(lambda: sign_of(tuple(server.sessions[before].tags)).joins == 1)
    assert {"mine", "pytest-anchor", run_tag("ci-7")} < set(server.sessions[before].tags)
    after = cut.create()
    assert sign_of(tuple(server.sessions[after].tags)).joins == 1
    wait_for(lambda: "run-5" in other.sees().vanished and other.sees().vanished["run-5"].taker)
    lists = server.count("GET")
    wait_for(lambda: server.count("GET") > lists + 2)
    assert set(cut.alive()) == {before, after}
    assert server.count("DELETE") == 0
    cut.route.is_cut = False
    wait_for(lambda: cut.store.is_joined)
    wait_for(lambda: "run-5" in other.sees().leases)
    assert cut.store.joins == 2
    assert len(other.sees().slots) == 2
    assert "took it for vanished" not in cut.summary[0]
    assert "could not be used for" in cut.summary[0]


def test_what_it_showed_does_not_protect_it_once_it_has_joined_again(start, server):
    cut, other = start("run-5"), start("run-1")
    shown = cut.create()
    cut.route.is_cut = True
    wait_for(lambda: sign_of(tuple(server.sessions[shown].tags)).joins == 1)
    wait_for(lambda: "run-5" in other.sees().vanished)
    cut.route.is_cut = False
    wait_for(lambda: cut.store.joins == 2)
    cut.vanish()
    wait_for(lambda: not cut.alive())


def test_a_machine_that_vanishes_while_it_is_cut_off_is_missed_in_the_end(start, server):
    cut, other = start("run-5"), start("run-1")
    session = cut.create()
    cut.route.is_cut = True
    wait_for(lambda: sign_of(tuple(server.sessions[session].tags)).beat > 1)
    wait_for(lambda: "run-5" in other.sees().vanished and other.sees().vanished["run-5"].taker)
    lists = server.count("GET")
    wait_for(lambda: server.count("GET") > lists + 5)
    assert cut.alive(), "it lives"
    cut.vanish()
    wait_for(lambda: not cut.alive())
    wait_for(lambda: any("recovered 1 session " in line for line in other.summary))


def test_one_session_that_shows_it_is_enough_where_the_api_takes_no_tags(start, server):
    """The endpoint is not in the API's description; what is created meanwhile carries the tag from the start."""
    cut, other = start("run-5"), start("run-1")
    before = cut.create()
    server.fail_always("TAGS", fs.status(404))
    cut.route.is_cut = True
    wait_for(lambda: cut.sharing._refused)
    after = cut.create()
    wait_for(lambda: "run-5" in other.sees().vanished and other.sees().vanished["run-5"].taker)
    lists = server.count("GET")
    wait_for(lambda: server.count("GET") > lists + 2)
    assert set(cut.alive()) == {before, after}
    assert len(server.asked_for("TAGS")) == 1


def test_a_run_that_comes_back_while_its_sessions_are_listed_keeps_them(start, server, monkeypatch):
    back, other = start("run-5"), start("run-1")
    session = back.create()
    listing, listed = threading.Event(), other.sharing._listed

    def slowly(*args):
        found = listed(*args)
        listing.set()
        wait_for(lambda: "run-5" in other.sees().leases)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(other.sharing, "_listed", slowly)
        patch.setattr(back.sharing, "_show_life", lambda: None)  # it had stood still
        back.route.is_cut = True
        assert listing.wait(BUSY)
        back.route.is_cut = False
        wait_for(lambda: back.store.joins == 2)
    time.sleep(LEASE)
    assert back.alive() == [session]
    assert any("took it for" in line for line in back.summary)


def test_who_has_stood_still_ends_nothing_that_it_found_before(start, server):
    ends = sharing_module._Ends(AnchorAPI(server.url, KEY), {"x": "n"}, shared_store.boot_time() - 1.0)
    assert "nothing was sent" in str(ends.end("x", time.monotonic() + 5))
    assert server.requests == []


@pytest.mark.parametrize("outage", ["down", "flushed", "clock"])
def test_an_outage_of_the_server_itself_costs_no_run_its_sessions(start, server, outage):
    runs = [start("run-1"), start("run-2")]
    ids = [run.create() for run in runs]
    memory = runs[0].route._server
    if outage == "down":
        memory.go_down()
        time.sleep(3 * LEASE)
        memory.come_back()
    elif outage == "flushed":
        memory.value = b""
    else:
        memory.ahead = 100_000.0
    wait_for(lambda: all(run.store.is_joined for run in runs))
    time.sleep(3 * LEASE)
    assert sorted(server.alive) == sorted(ids)
    assert server.count("DELETE") == 0
    assert set(runs[0].sees().leases) == {"run-1", "run-2"}


# a creation


def test_a_creation_that_was_admitted_before_its_process_stood_still_asks_again(start, server, monkeypatch):
    run = start("run-1")
    answers = iter([False, True])
    monkeypatch.setattr(type(run.owner.limits), "is_current", property(lambda _self: next(answers)))
    run.create()
    assert server.count("POST") == 1
    assert sorted(record.state for record in run.run.read().records.values()) == ["open", "refused"]
    assert len(run.sees().slots) == 1


def test_one_that_is_made_ahead_is_left_to_its_test(start, monkeypatch):
    run = start("run-1")
    monkeypatch.setattr(type(run.owner.limits), "is_current", property(lambda _self: False))
    wanted = owner_module.Request("t")
    wanted.config = {}
    assert run.owner._create_ahead(wanted) is None
    assert run.sees().slots == {}


# tags


def test_the_tag_by_which_a_run_shows_that_it_lives():
    assert sign_of(()) == Sign(0, 0)
    odd = ("pytest-anchor:alone=x", "pytest-anchor:alone=" + "9" * 50 + ".1", "pytest-anchor:alone=1")
    assert sign_of((Sign(3, 9).tag, Sign(12, 0).tag, *odd)) == Sign(12, 0)
    assert with_sign(("a", Sign(1, 7).tag), Sign(2, 0)) == ["a", "pytest-anchor:alone=2.0"]


def test_an_odd_id_is_never_part_of_a_url(server, api):
    with pytest.raises(AnchorAPIError, match="not a session id"):
        api.set_tags("all", ["x"], deadline=time.monotonic() + 5)
    assert server.requests == []
