"""``python -m pytest_anchor limits``: what the plan allows, which runs use it and what waits."""

import json
import re
import time

import pytest
from commands import told
from fault_server import KEY
from memory_server import MemoryServer

from pytest_anchor.__main__ import main
from pytest_anchor.api import AnchorAPI
from pytest_anchor.budget import leases
from pytest_anchor.budget.admission import Limits
from pytest_anchor.budget.file_store import FileStore
from pytest_anchor.budget.holders import SlotHolders
from pytest_anchor.budget.redis_server import ServerError
from pytest_anchor.budget.shared_store import signed
from pytest_anchor.budget.state import Lease, QueueEntry, Slot, State
from pytest_anchor.cli import limits as limits_module
from pytest_anchor.errors import Limit

pytest_plugins = ["command_fixtures"]


@pytest.fixture
def account(server):
    return AnchorAPI(server.url, KEY).account


def test_what_the_runs_of_a_registry_use(server, live, dead, registry, account, capsys):
    server.cap = 5
    intent = {"owner": "gw0", "test": "t", "base_url": "u", "fingerprint": "f", "run_id": "r", "folder_inode": 1}
    dead.append("intent", "dead-0", time=1.0, **intent)
    dead.append("created", "dead-0", id="x", signature="s")
    for run, count in ((live, 2), (dead, 1)):
        store = FileStore(registry, account, run.folder.name, "gw0")
        limits = Limits(store, SlotHolders(run.folder, "gw0"), cap=3, timeout=60)
        for number in range(count):
            limits.admission("t", print).wait(f"{run.folder.name}-{number}", self_blocked=False, between_polls=print)
    limits.mark_slots(["dead-0"], "ending")
    limits.record_rate_limited("x", 0.0, Limit(7.0, 100, 60.0))
    queued = Limits(FileStore(registry, account, "live", "gw1"), SlotHolders(live.folder, "gw1"), cap=3, timeout=60)
    admission = queued.admission("tests/test_it.py::test_\x1b[31mred", print)
    admission._poll("live-9", self_blocked=False)
    assert main(["limits", "--json"]) == 0
    found = told(capsys)
    assert found["store"] == str(registry)
    assert found["plan"] == {"sessions_at_once": 5, "creations": 100, "window_seconds": 60.0}
    assert found["open"] == 3
    assert 5 < found["next_in_seconds"] < 9
    assert [(row["run"], row["open"], row["ending"], row["waiting"], row["state"]) for row in found["runs"]] == [
        ("live", 2, 0, 1, "lives"),
        ("dead", 0, 1, 0, "dead"),
    ]
    (waiting,) = found["waiting"]
    assert (waiting["run"], waiting["owner"], waiting["for"]) == ("live", "gw1", "slot")
    assert main(["limits"]) == 0
    out = capsys.readouterr().out
    assert re.match(rf"{registry}: 3 sessions open of 5 at once\n0 of 100 creations begun in 60 s; the next in \d", out)
    assert re.search(r"^live +- +- +2 +0 +0 +1 +- +lives$", out, re.MULTILINE)
    assert r"test_\x1b[31mred" in out
    assert "\x1b" not in out


SHARED = State(
    touched=1000.0,
    last=4,
    slots={"h.1": Slot("a", "gw0"), "h.2": Slot("a", "gw1", "ahead"), "h.3": Slot("b", "main")},
    queue=(QueueEntry(4, "t", "b", "main", "test_it", asked=1000.0, seen=1000.0, cap=3, waits_for_slot=True),),
    leases={"a": Lease(1000.0, 30.0, "ci-7", "host-1", "3"), "b": Lease(998.0, 30.0, "ci-7", "host-2")},
)


@pytest.fixture
def shared(environment, server, monkeypatch):
    memory = MemoryServer(ahead=1010.0 - time.time())
    memory.value = signed(SHARED, AnchorAPI(server.url, KEY).sign)
    asked = []
    monkeypatch.setattr(limits_module, "RedisServer", lambda url, key: asked.append((url, key)) or memory)
    memory.asked = asked
    return memory


def test_what_the_runs_of_several_machines_use(shared, account, monkeypatch, capsys):
    monkeypatch.setenv("PYTEST_ANCHOR_SHARED_LIMITS", "redis://:s3cret@h/0")
    assert main(["limits", "--json"]) == 0
    text = capsys.readouterr().out
    assert "s3cret" not in text
    found = json.loads(text)
    assert found["store"] == "redis://:***@h/0"
    assert shared.asked == [("redis://:s3cret@h/0", f"pytest-anchor:{account}:limits")]
    assert [(row["machine"], row["shard"], row["open"], row["ahead"]) for row in found["runs"]] == [
        ("host-1", "3", 1, 1),
        ("host-2", None, 1, 0),
    ]
    assert found["runs"][1]["seen_seconds_ago"] == pytest.approx(12.0, abs=1.0)
    assert found["waiting"][0]["machine"] == "host-2"
    assert shared.writes == 0, "it only looks"


def test_a_run_that_vanished_is_shown_as_such(shared, server, capsys):
    state, _ = leases.renew(SHARED, 1010.0, leases.Member("a", "ci-7", "host-1", "3", 30.0), 1)
    for moment in (1015.0, 1020.0, 1025.0, 1030.0, 1035.0, 1060.0):
        state, _ = leases.renew(state._replace(touched=moment), moment, leases.Member("a", "ci-7", "h", "3", 30.0), 1)
    state, _ = leases.take_over(state, 1060.0, "a")
    shared.value = signed(state, AnchorAPI(server.url, KEY).sign)
    assert main(["limits", "--json", "--shared-limits", "redis://h"]) == 0
    assert [row["state"] for row in told(capsys)["runs"]] == ["lives", "vanished, taken over by a"]


def test_a_server_that_cannot_be_read_is_said(shared, capsys):
    def fail():
        raise ServerError("ConnectionError: refused")

    shared.fault = fail
    assert main(["limits", "--shared-limits", "redis://h"]) == 2
    assert "cannot be read from redis://h: ConnectionError: refused" in capsys.readouterr().err


def test_an_empty_server_is_no_trouble(shared, capsys):
    shared.value = b""
    assert main(["limits", "--shared-limits", "redis://h"]) == 0
    assert capsys.readouterr().out == "redis://h: 0 sessions open of unknown at once\n"


def test_it_is_shown_again_until_ctrl_c(shared, monkeypatch, capsys):
    shown = []

    def sleep(_seconds):
        shown.append(capsys.readouterr().out)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(limits_module.time, "sleep", sleep)
    assert main(["limits", "--shared-limits", "redis://h", "--json", "--watch"]) == 0
    assert [json.loads(one)["open"] for one in shown] == [3, 3, 3]
    assert all(one.count("\n") == 1 for one in shown)


def test_ctrl_c_in_the_midst_of_reading_ends_a_watch_as_well(shared, capsys):
    def interrupt():
        raise KeyboardInterrupt

    shared.fault = interrupt
    assert main(["limits", "--shared-limits", "redis://h", "--watch"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("args", [["--shared-limits", "redis://:p@h"], ["--shared-limits", "http://h"], []])
def test_what_cannot_be_shown_says_why(environment, args, capsys):
    assert main(["limits", *args]) == 2
    assert capsys.readouterr().err.count("\n") == 1
