import signal
import subprocess
import sys
import time
from pathlib import Path

import fault_server as fs
import pytest
from fault_server import KEY

from pytest_anchor import sweep
from pytest_anchor.api import AnchorAPI
from pytest_anchor.registry import Run
from pytest_anchor.sweep import adopt_listed, end_sessions, sweep_owner, sweep_run
from pytest_anchor.tags import TAG, new_tag, run_tag

ERROR = {"status": 500, "code": "", "message": "m", "remedy": "", "tries": 7}


def tags(nonce, run_id="r1"):
    return TAG, run_tag(run_id), new_tag(nonce)


def intend(run, nonce, owner="main"):
    run.append("intent", nonce, owner=owner, test="t", time=time.time(), base_url="", fingerprint="")


def opened(server, run, nonce, owner="main"):
    session_id = server.add(*tags(nonce))
    intend(run, nonce, owner)
    run.append("created", nonce, id=session_id)
    return session_id


def lost(server, run, nonce):
    intend(run, nonce)
    run.append("lost", nonce, time=time.time(), error=ERROR)
    return server.add(*tags(nonce))


def swept(api, run, timeout=5.0, progress=None):
    before = time.monotonic()
    problem = sweep_run(api, run, "r1", timeout=timeout, progress=progress or (lambda *_: None))
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
        opened(server, run, f"inv-{n}")
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
    opened(server, run, "inv-1")
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
        opened(server, run, f"inv-{n}")
    server.fail_always("DELETE", fs.slow(0.2))
    assert swept(api, run)[1] < 1.5
    assert server.alive == []


def test_passing_trouble_is_outlasted(server, api, run, monkeypatch):
    monkeypatch.setattr(sweep, "_PAUSES", (0.01,))
    opened(server, run, "inv-1")
    server.fail("DELETE", *[fs.status(500)] * 9)
    assert swept(api, run)[0] is None
    assert server.alive == []
    assert server.count("DELETE") == 10


def test_tries_add_up(server, api, run, monkeypatch):
    monkeypatch.setattr(sweep, "_PAUSES", (0.01, 60))
    opened(server, run, "inv-1")
    run.append("failed", "inv-1", error=ERROR)
    server.fail_always("DELETE", fs.status(500))
    swept(api, run)
    assert run.state.records["inv-1"].error["tries"] == 7 + server.count("DELETE") == 15


def test_tries_add_up_when_time_is_up(server, api, run):
    for n in (1, 2):
        opened(server, run, f"inv-{n}")
        run.append("failed", f"inv-{n}", error=ERROR)
    server.fail_always("DELETE", fs.silent)
    records = list(run.read().records.values())
    failures = end_sessions(api, run, records, how="sweep", deadline=time.monotonic() + 0.2)
    assert [error.tries for error in failures.values()] == [8, 8]
    assert {record.error["tries"] for record in Run(run.folder, "x").read().records.values()} == {8}


@pytest.mark.parametrize("code", [400, 402, 403])
def test_hopeless_trouble_ends_the_sweep_early(server, api, run, code):
    opened(server, run, "inv-1")
    server.fail_always("DELETE", fs.status(code))
    assert swept(api, run)[1] < 1
    assert server.count("DELETE") == 1
    assert states(run) == {"inv-1": "open"}
    assert run.state.records["inv-1"].error["status"] == code


def test_a_revoked_key_ends_the_sweep_early_and_is_told(server, api, run):
    opened(server, run, "inv-1")
    server.keys.clear()
    problem, took = swept(api, run)
    assert problem.status == 401
    assert took < 1
    assert states(run) == {"inv-1": "open"}


def test_a_session_that_ended_itself_is_no_failure(server, api, run):
    server.end(opened(server, run, "inv-1"))
    assert swept(api, run)[0] is None
    assert run.state.records["inv-1"].already


@pytest.mark.parametrize("method", ["DELETE", "GET"])
@pytest.mark.parametrize("fault", [fs.silent, fs.trickle(b""), fs.trickle(b"HTTP/1.1 200 OK\r\nX: ")])
def test_the_budget_is_kept(server, api, run, method, fault):
    opened(server, run, "inv-1")
    lost(server, run, "inv-2")
    server.fail_always(method, fault)
    assert swept(api, run, timeout=0.4)[1] < 1.2


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
    lost(server, run, "inv-1")
    assert swept(api, run)[0] is None
    assert server.alive == []


def test_a_hopeless_failure_does_not_keep_a_lost_creation_from_being_found(server, api, run):
    bad = opened(server, run, "inv-1")
    server.list_delay = 0.4
    lost(server, run, "inv-2")
    server.fail_always("DELETE", fs.on(bad, fs.status(403)))
    swept(api, run, timeout=3)
    assert server.alive == [bad]


def test_a_lost_creation_that_never_turns_up_is_not_looked_for_for_ever(server, api, run, monkeypatch):
    monkeypatch.setattr(sweep, "LOST_GRACE", 0.3)
    intend(run, "inv-1")
    problem, took = swept(api, run, timeout=30)
    assert problem is None
    assert 0.2 < took < 3
    assert states(run) == {"inv-1": "pending"}


def test_a_lost_creation_whose_session_is_over_is_settled(server, api, run):
    server.end(lost(server, run, "inv-1"))
    assert swept(api, run)[0] is None
    record = run.state.records["inv-1"]
    assert (record.state, record.already) == ("ended", True)
    assert server.count("DELETE") == 0


def test_two_sessions_of_one_creation_are_both_ended(server, api, run):
    opened(server, run, "inv-1")
    server.add(*tags("inv-1"))
    assert swept(api, run)[0] is None
    assert server.alive == []
    assert len(run.state.records) == 2


def test_a_session_that_the_record_does_not_know_is_ended(server, api, run):
    opened(server, run, "inv-1")
    server.add(*tags("inv-elsewhere"))
    server.end(server.add(*tags("inv-over")))
    assert swept(api, run)[0] is None
    assert server.alive == []
    assert set(run.state.records) == {"inv-1", "inv-elsewhere"}


def test_a_list_that_fails_is_the_problem_that_is_told(server, api, run):
    opened(server, run, "inv-1")
    server.fail_always("GET", fs.status(403))
    problem = adopt_listed(api, run, "r1", deadline=time.monotonic() + 5)
    assert problem.status == 403
    assert swept(api, run)[0].status == 403
    assert server.alive == []


def test_lost_creations_are_looked_for_until_the_list_works(server, api, run, monkeypatch):
    monkeypatch.setattr(sweep, "_PAUSES", (0.01,))
    lost(server, run, "inv-1")
    server.fail("GET", *[fs.status(503)] * 9)
    assert swept(api, run)[0] is None
    assert server.alive == []


# ending


def test_only_those_that_failed_are_returned(server, api, run):
    bad, _good = opened(server, run, "inv-1"), opened(server, run, "inv-2")
    server.fail_always("DELETE", fs.on(bad, fs.status(403)))
    records = list(run.read().records.values())
    failures = end_sessions(api, run, records, how="teardown", deadline=time.monotonic() + 5)
    assert list(failures) == ["inv-1"]
    assert server.alive == [bad]
    assert run.read().records["inv-2"].how == "teardown"
    assert end_sessions(api, run, [], how="teardown", deadline=time.monotonic() + 5) == {}


def test_past_the_deadline_the_caller_is_not_held(server, api, run):
    for n in range(3):
        opened(server, run, f"inv-{n}")
    server.fail_always("DELETE", fs.silent)
    before = time.monotonic()
    failures = end_sessions(api, run, run.read().records.values(), how="teardown", deadline=before + 0.2)
    assert time.monotonic() - before < 1
    assert len(failures) == 3
    assert {error.message for error in failures.values()} <= {sweep._TOO_LATE, "no answer in time"}


def test_what_the_disk_does_not_take_is_known_in_memory(server, api, run):
    opened(server, run, "inv-1")
    record = run.read().records["inv-1"]
    (run.folder / "journal.jsonl").unlink()
    (run.folder / "journal.jsonl").mkdir()
    assert end_sessions(api, run, [record], how="test", deadline=time.monotonic() + 5) == {}
    assert record.state == "ended"
    assert server.alive == []


# a dead owner


HOLD = """
import sys, time
from pathlib import Path
from pytest_anchor.registry import Run
Run(Path(sys.argv[1]), "gw0").join()
print("joined", flush=True)
time.sleep(60)
"""


def test_a_killed_owners_sessions_are_ended_and_a_living_ones_are_not(server, api, run):
    dead, mine = opened(server, run, "inv-1", "gw0"), opened(server, run, "inv-2")
    code = [
        sys.executable,
        "-c",
        HOLD.replace("Run(Path", "run = Run(Path").replace(".join()", "; run.join()"),
        run.folder,
    ]
    with subprocess.Popen(
        code, env={"PYTHONPATH": str(Path(__file__).parent.parent)}, stdout=subprocess.PIPE, text=True
    ) as worker:
        try:
            assert worker.stdout.readline() == "joined\n"
            before = time.monotonic()
            sweep_owner(api, run, "gw0", timeout=0.15)
            assert 0.1 < time.monotonic() - before < 2
            assert server.alive == [dead, mine]
        finally:
            worker.send_signal(signal.SIGKILL)
            worker.wait(10)
    sweep_owner(api, run, "gw0", timeout=5)
    assert server.alive == [mine]
    assert run.read().records["inv-1"].how == "sweep"


def test_the_api_may_be_gone(run, quick):
    intend(run, "inv-1")
    run.append("created", "inv-1", id="abc")
    api = AnchorAPI("http://127.0.0.1:1", KEY)
    problem, took = swept(api, run, timeout=0.5)
    assert problem is not None
    assert took < 3
    assert states(run) == {"inv-1": "open"}


def test_a_session_that_is_found_when_the_disk_takes_no_more_is_ended(server, api, run):
    opened(server, run, "inv-1")
    found = server.add(*tags("inv-2"))
    run.read()
    journal = run.folder / "journal.jsonl"
    kept = journal.rename(run.folder / "kept")
    journal.symlink_to(kept)  # readable, but never written through
    swept(api, run)
    assert found not in server.alive
