"""Dead runs: their sessions were created by real requests, and neither a broker nor a process of theirs lives."""

import json
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fault_server as fs
import pytest
from processes import script
from real_runs import Suite
from records import ERROR, intend_with, lost, opened, tags

from pytest_anchor.api import AnchorAPI
from pytest_anchor.broker.owner import Owner, Request
from pytest_anchor.cleanup.recovery import RECOVERY, RecoveryObserver, is_dead, recover, recover_all, runs
from pytest_anchor.errors import AnchorRegistryError
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.locks import JOURNAL, REAPER_LOCK, hold, note_process
from pytest_anchor.registry.records import State
from pytest_anchor.reporting.summary import Report

HOUR, DAY = 3600.0, 86400.0


@pytest.fixture
def live(settings, api):
    """Start a run that creates sessions: its record, and their ids."""

    def live(number=3, name="dead", folder=None):
        theirs = settings._replace(folder=folder or settings.folder.parent / name, run_id=f"run-{name}")
        run = Run(theirs.folder)
        run.join()
        owner = Owner("main", theirs, run, api, 0)
        return run, [owner.create({}, Request(f"t.py::{n}")).record.id for n in range(number)]

    return live


@pytest.fixture
def die(live):
    """Make a run that created sessions and died: its folder, and their ids."""

    def die(number=3, name="dead"):
        run, ids = live(number, name)
        run.leave()
        return run.folder, ids

    return die


@pytest.fixture
def dead(tmp_path):
    """A dead run, into whose journal the tests write."""
    run = Run(tmp_path / "registry" / "dead")
    run.join()
    run.leave()
    return run


@pytest.fixture
def recovered(settings, quick):
    """Recover as the next run does, without its pauses."""

    def recovered(**changes):
        return list(recover_all(settings._replace(**changes), replace(RECOVERY, pauses=(0.01,), grace=0.0)))

    return recovered


def age(folder, seconds):
    """As if the run had written its last some time ago."""
    moment = time.time() - seconds
    os.utime(folder / JOURNAL, (moment, moment))


def just_now(text):
    """A test may take a second or two."""
    return re.sub(r"died \d s ago", "died just now", text)


def lines(recoveries):
    report = Report(State(), Path("/none"))
    report.recovered = recoveries
    return [just_now(line.text) for line in report.lines()]


def ids_of(records):
    return [record.id for record in records]


# what is ended


def test_what_a_dead_run_left_is_ended_and_told(server, die, recovered):
    folder, ids = die()
    strangers = [server.add(), server.add("pytest-anchor"), server.add("pytest-anchor", "pytest-anchor:run=run-dead")]
    age(folder, 2 * HOUR + 60)
    (recovery,) = recovered()
    assert server.alive == strangers
    assert ids_of(recovery.ended) == ids
    assert {record.ended_by for record in recovery.ended} == {"recovery"}
    assert not folder.exists()
    assert lines([recovery]) == ["recovered 3 sessions of the run that died 2 h ago"]
    assert recovered() == []


def test_several_dead_runs_are_recovered_one_by_one(server, die, recovered):
    folders = [die(n, f"dead-{n}")[0] for n in (1, 2)]
    assert [(one.run.folder, len(one.ended)) for one in recovered()] == [(folders[0], 1), (folders[1], 2)]
    assert server.alive == []


def test_a_creation_that_was_lost_is_found_by_its_tag(server, api, dead, recovered):
    lost(server, api, dead, "dead-1")
    intend_with(api, dead, "dead-2")
    (recovery,) = recovered()
    assert server.alive == []
    assert len(recovery.ended) == 1
    assert [record.nonce for record in recovery.left] == ["dead-2"]
    assert dead.folder.exists()
    assert (
        lines([recovery])[1] == "not yet recovered: 1 session of the run that died just now; the next run tries again"
    )


def test_a_dead_run_that_had_ended_everything_goes_without_a_word(server, die, recovered, settings):
    folder, ids = die()
    for session_id in ids:
        server.end(session_id)
    run = Run(folder)
    for nonce in run.read().records:
        run.append("ended", nonce, ended_by="sweep", already=True, note="")
    before = len(server.requests)
    assert recovered() == []
    assert not folder.exists()
    assert len(server.requests) == before


def test_what_is_over_at_the_api_is_settled(server, die, recovered):
    _, ids = die()
    for session_id in ids:
        server.end(session_id)
    (recovery,) = recovered()
    assert all(record.already for record in recovery.ended)
    assert lines([recovery]) == ["recovered 3 sessions of the run that died just now"]


def test_what_the_reaper_did_is_told_once(server, api, dead, recovered):
    opened(server, api, dead, "dead-1")
    opened(server, api, dead, "dead-2")
    dead.append("ended", "dead-1", ended_by="reaper", already=False, note="")
    dead.append("failed", "dead-2", error=ERROR)
    (recovery,) = recovered()
    assert [len(recovery.reaped), len(recovery.ended)] == [1, 1]
    assert lines([recovery]) == [
        "the reaper ended 1 session of the run that died just now",
        "recovered 1 session of the run that died just now",
    ]
    assert recovered() == []


def test_what_cannot_be_ended_stays_and_is_tried_again(server, die, recovered):
    folder, ids = die(2)
    server.fail_always("DELETE", fs.on(ids[0], fs.status(403, "not yours")))
    (recovery,) = recovered()
    assert (ids_of(recovery.left), ids_of(recovery.ended)) == (ids[:1], ids[1:])
    assert lines([recovery])[2].startswith(f"  {ids[0]} of t.py::0: HTTP 403: “not yours”")
    server.fail_always("DELETE", None)
    (recovery,) = recovered()
    assert (ids_of(recovery.left), ids_of(recovery.ended)) == ([], ids[:1])
    assert not folder.exists()


def test_an_api_that_is_gone_costs_the_time_that_is_given_and_nothing_is_lost(server, die, recovered):
    folder, ids = die(2)
    for method in ("GET", "DELETE"):
        server.fail_always(method, fs.status(503))
    before = time.monotonic()
    (recovery,) = recovered(sweep_timeout=0.3)
    assert time.monotonic() - before < 8
    assert ids_of(recovery.left) == ids
    assert recovery.problem.what == "list the run's sessions"
    assert folder.exists()


def test_without_a_key_nothing_is_ended_and_nothing_is_lost(server, die, recovered):
    folder, ids = die(1)
    (recovery,) = recovered(api_key=None)
    assert ids_of(recovery.left) == ids
    assert server.alive == ids
    assert folder.exists()


# what is left alone


def test_a_run_that_lives_is_left_alone(server, live, recovered):
    run, ids = live(1)
    assert not is_dead(Run(run.folder))
    assert recovered() == []
    assert server.alive == ids
    assert not (run.folder / "sweep.lock").exists()  # whose time is that of the run's death
    run.leave()
    assert len(recovered()) == 1
    assert server.alive == []


def test_a_run_whose_broker_was_killed_is_left_to_the_one_that_its_processes_start(server, die, recovered):
    folder, ids = die()
    with script("import sys; sys.stdin.read()") as process:
        note_process(folder, "gw3", process.pid)
        assert not is_dead(Run(folder))
        assert recovered() == []
        assert server.alive == ids
    assert len(recovered()) == 1
    assert server.alive == []


def test_what_a_broker_that_reaps_does_not_sweep_is_recovered(server, live, recovered):
    run, _ = live()
    lock = hold(run.folder / REAPER_LOCK)
    assert len(recovered()) == 1
    assert server.alive == []
    os.close(lock)
    run.leave()


def test_a_run_that_has_a_process_again_is_swept_no_further(server, die, recovered):
    folder, _ = die(1)
    server.fail_always("DELETE", fs.status(500))
    back = Run(folder)

    def come_back(handler, act):
        back.join()
        return act()

    server.fail("GET", come_back)
    before = time.monotonic()
    recovered(sweep_timeout=60.0)
    assert time.monotonic() - before < 20
    assert folder.exists()
    back.leave()


def test_a_run_that_comes_back_before_it_is_claimed_is_left_alone(server, die, settings, monkeypatch):
    folder, ids = die(1)
    back, run = Run(folder), Run(folder)

    def claim():
        back.join()
        return Run.claim(run)

    monkeypatch.setattr(run, "claim", claim)
    assert recover(run, lambda: AnchorAPI(server.url, settings.api_key), timeout=5) is None
    assert server.alive == ids
    assert Run(folder).claim()  # it was let go
    back.leave()


def test_a_recovery_says_how_far_it_is(server, die, settings, quick):
    folder, _ = die(3)
    said = []
    run = Run(folder)
    observer = RecoveryObserver(run, lambda *now: said.append(now))
    recover(run, lambda: AnchorAPI(server.url, settings.api_key), timeout=5, observer=observer)
    assert (3, 3) in said
    assert server.alive == []


def test_what_the_api_made_twice_is_found(server, die, recovered):
    folder, _ = die(1)
    tags = next(iter(server.sessions.values())).tags
    server.add(*tags)
    (recovery,) = recovered()
    assert len(recovery.ended) == 2
    assert server.alive == []
    assert not folder.exists()


def test_what_the_record_of_a_dead_run_does_not_know_is_found(server, api, dead, recovered):
    opened(server, api, dead, "dead-1")
    server.add(*tags("dead-2"))
    stranger = server.add(*tags("other-1"))
    (recovery,) = recovered()
    assert len(recovery.ended) == 2
    assert server.alive == [stranger]


def test_a_run_that_somebody_sweeps_is_left_to_him(server, die, recovered):
    folder, ids = die()
    reaper = Run(folder)
    assert reaper.claim()
    assert recovered() == []
    assert server.alive == ids
    reaper.release()
    assert len(recovered()) == 1
    assert server.alive == []


def test_two_recoveries_do_not_trip_over_each_other(server, die, recovered):
    ids = [one for name in "abcd" for one in die(3, name)[1]]
    server.fail_always("DELETE", fs.slow(0.05))
    with ThreadPoolExecutor(3) as pool:
        told = [recovery for one in [pool.submit(recovered) for _ in range(3)] for recovery in one.result()]
    assert server.alive == []
    assert server.count("DELETE") == len(ids)
    assert sorted(one for recovery in told for one in ids_of(recovery.ended)) == sorted(ids)
    assert not any(recovery.problem or recovery.left for recovery in told)
    assert recovered() == []


@pytest.mark.parametrize("other", ["key", "url"])
def test_another_accounts_run_is_left_alone(server, settings, die, recovered, other):
    folder, ids = die(2)
    server.keys.add("another-key")
    before = len(server.requests)
    changes = (
        {"api_key": "another-key"} if other == "key" else {"base_url": server.url.replace("127.0.0.1", "localhost")}
    )
    (recovery,) = recovered(**changes)
    assert recovery.stranger
    assert lines([recovery]) == [
        "left alone: 2 sessions of the run that died just now, created with another key or base URL, or recorded elsewhere"
    ]
    assert len(server.requests) == before
    assert folder.exists()
    (recovery,) = recovered()  # with the right ones again
    assert ids_of(recovery.ended) == ids


def test_a_run_of_the_local_backend_recovers_nothing_of_the_cloud(server, die, recovered):
    folder, ids = die(1)
    before = len(server.requests)
    recovered(local=True, api_key="local-1", base_url="")
    assert (server.alive, len(server.requests)) == (ids, before)
    assert folder.exists()


def test_a_copy_of_a_folder_is_left_alone(server, settings, live, recovered, tmp_path):
    run, ids = live(1, "run", tmp_path / "elsewhere" / "run")
    copy = settings.folder.parent / "run"
    shutil.copytree(run.folder, copy)
    copy.parent.chmod(0o700)
    assert is_dead(Run(copy))
    (recovery,) = recovered()
    assert recovery.stranger
    assert server.alive == ids
    assert server.count("DELETE") == server.count("GET") == 0
    assert copy.exists()
    run.leave()


def test_a_folder_that_was_moved_is_recovered(server, die, recovered, settings, tmp_path):
    die(1)
    settings.folder.parent.rename(tmp_path / "moved")
    assert len(recovered(folder=tmp_path / "moved" / "inv")) == 1
    assert server.alive == []


def test_what_no_run_has_made_is_left_alone(settings, recovered, tmp_path):
    registry = settings.folder.parent
    empty, full = registry / "0123456789abcdef", registry / "src"
    for folder in (empty, full):
        folder.mkdir(parents=True)
    for name in ("a.py", "broker.lock", "main.1.pid", "sweep.lock"):
        (full / name).write_text("precious")
    long_ago = time.time() - 30 * 86400
    for folder in (empty, full):
        os.utime(folder, (long_ago, long_ago))
    assert runs(registry) == recovered() == []
    assert not is_dead(Run(empty))
    assert empty.exists()
    assert sorted(one.name for one in full.iterdir()) == ["a.py", "broker.lock", "main.1.pid", "sweep.lock"]


def test_links_and_files_in_a_registry_are_no_runs(server, settings, die, recovered, tmp_path):
    folder, ids = die(1)
    moved = folder.rename(tmp_path / "moved")
    folder.symlink_to(moved)
    (folder.parent / "file").write_text("x")
    assert runs(folder.parent) == []
    assert recovered() == []
    assert server.alive == ids


def test_without_a_registry_there_are_no_runs(tmp_path, recovered):
    assert runs(tmp_path / "none") == []
    assert recovered() == []


def test_a_registry_that_others_may_write_in_is_not_used(server, die, recovered):
    folder, ids = die(1)
    folder.parent.chmod(0o777)
    with pytest.raises(AnchorRegistryError, match="other users may write in it"):
        recovered()
    assert server.alive == ids


# time


def test_after_a_week_what_is_still_open_is_given_up_with_a_line(server, api, dead, recovered):
    session_id = opened(server, api, dead, "dead-1", time=time.time() - 7 * DAY - 60)
    server.fail_always("DELETE", fs.status(403, "no"))
    age(dead.folder, 7 * DAY)
    (recovery,) = recovered()
    assert (ids_of(recovery.given_up), recovery.left) == ([session_id], [])
    (line,) = lines([recovery])
    assert line.startswith(f"GAVE UP on {session_id} of t.py::x, a week after its creation: HTTP 403: “no”")
    assert not dead.folder.exists()


def test_within_a_week_nothing_is_given_up(server, api, dead, recovered):
    opened(server, api, dead, "dead-1", time=time.time() - 7 * DAY + 60)
    opened(server, api, dead, "dead-2", time=time.time() - 8 * DAY)
    server.fail_always("DELETE", fs.status(403))
    (recovery,) = recovered()
    assert (len(recovery.left), recovery.given_up) == (2, [])
    assert dead.folder.exists()


def test_after_a_week_what_can_be_ended_is_ended(server, api, dead, recovered):
    opened(server, api, dead, "dead-1", time=time.time() - 30 * DAY)
    (recovery,) = recovered()
    assert (len(recovery.ended), recovery.given_up) == (1, [])
    assert server.alive == []


def test_after_a_week_another_accounts_run_is_given_up_as_well(server, api, dead, recovered):
    session_id = opened(server, api, dead, "dead-1", time=time.time() - 8 * DAY)
    (recovery,) = recovered(api_key="another-key")
    (line,) = lines([recovery])
    assert line.startswith(f"GAVE UP on {session_id}")
    assert server.requests == []
    assert not dead.folder.exists()


@pytest.mark.parametrize(
    ("minutes", "readable", "forgotten"), [(61, True, True), (59, True, False), (61, False, False)]
)
def test_a_creation_that_never_was_is_forgotten_after_an_hour(
    server, api, dead, recovered, minutes, readable, forgotten
):
    intend_with(api, dead, "dead-1", time=time.time() - minutes * 60)
    if not readable:
        server.fail_always("GET", fs.status(403))
    recoveries = recovered()
    assert server.count("GET") == 1
    assert dead.folder.exists() is not forgotten
    assert [len(recovery.left) for recovery in recoveries] == ([] if forgotten else [1])


@pytest.mark.parametrize("moment", [0.0, -1e9, 4e9, 1e308, float("nan")], ids=str)
def test_a_clock_that_jumps_loses_no_session(server, api, dead, recovered, moment):
    opened(server, api, dead, "dead-1", time=moment)
    lost(server, api, dead, "dead-2", time=moment)
    age(dead.folder, time.time() - moment if 0 <= moment < 5e9 else -DAY)
    (recovery,) = recovered()
    assert server.alive == []
    assert len(recovery.ended) == 2
    assert all(line.isprintable() for line in lines([recovery]))


def test_a_run_that_died_in_the_future_died_just_now(die, recovered):
    folder, _ = die(1)
    age(folder, -DAY)
    assert lines(recovered()) == ["recovered 1 session of the run that died just now"]


def test_a_session_of_the_future_is_not_given_up(server, api, dead, recovered):
    opened(server, api, dead, "dead-1", time=time.time() + 30 * DAY)
    server.fail_always("DELETE", fs.status(403))
    (recovery,) = recovered()
    assert (len(recovery.left), recovery.given_up) == (1, [])


# records that cannot be read, or were edited


def test_a_journal_with_junk_in_it_is_kept_for_a_week(server, api, dead, recovered):
    opened(server, api, dead, "dead-1")
    with (dead.folder / JOURNAL).open("ab") as file:
        file.write(b"\x00\xff junk\n")
    (recovery,) = recovered()
    assert (server.alive, len(recovery.ended)) == ([], 1)
    assert recovered() == []
    assert dead.folder.exists()
    week_ago = time.time() - 7 * DAY - 60
    os.utime(dead.folder / "sweep.lock", (week_ago, week_ago))
    assert recovered() == []
    assert not dead.folder.exists()


@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/hostname")])
def test_a_journal_that_is_none_is_told_and_stops_no_other_recovery(server, die, recovered, put):
    folder, _ = die(1, "a-broken")
    die(1, "b-good")
    (folder / JOURNAL).unlink()
    put(folder / JOURNAL)
    broken, good = recovered()
    assert isinstance(broken.problem, AnchorRegistryError)
    assert re.match(r"the recovery of the run that died .* is incomplete: the session registry", lines([broken])[0])
    assert len(good.ended) == 1
    assert folder.exists()


@pytest.mark.parametrize("session_id", ["all", "../x", "a/b", "\x1b[2J"])
def test_an_edited_journal_has_nothing_else_ended(server, die, recovered, session_id):
    folder, ids = die(1)
    stranger = server.add("theirs")
    journal = folder / JOURNAL
    intent, created = journal.read_bytes().splitlines(keepends=True)
    hostile = [{**json.loads(created), "id": one} for one in (session_id, stranger)]
    journal.write_bytes(intent + b"".join(json.dumps(one).encode() + b"\n" for one in hostile))
    recovered()
    deletes = [path for method, path in server.requests if method == "DELETE"]
    assert set(deletes) <= {f"/v1/sessions/{ids[0]}"}
    assert stranger in server.alive


# --anchor-local


def test_the_folder_of_a_dead_local_run_goes(server, api, dead, recovered):
    opened(server, api, dead, "dead-1")
    (dead.folder / "local.url").write_text(server.url)
    lock = hold(dead.folder / "local.alive")
    assert recovered() == []
    assert dead.folder.exists()  # its backend, or a browser of it, still lives
    os.close(lock)
    assert recovered() == []
    assert not dead.folder.exists()
    assert server.requests == []


# the next run


@pytest.fixture
def suite(server, tmp_path):
    return Suite(tmp_path, server)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_run_recovers_while_it_tests_and_says_so(server, suite, die, settings, workers):
    folder, ids = die()
    suite.registry.parent.mkdir(exist_ok=True)
    folder.parent.rename(suite.registry)
    age(suite.registry / "dead", 2 * HOUR + 60)
    suite.write("def test_a(anchor_session): anchor_session()\ndef test_b(): pass")
    run = suite.run(workers=workers)
    assert run.status == 0
    assert run.section == ("1 session created: 1 at teardown\nrecovered 3 sessions of the run that died 2 h ago\n")
    assert not run.alive
    assert not run.recorded
    assert server.count("DELETE") == len(ids) + 1


@pytest.mark.slow
def test_a_run_without_sessions_of_its_own_recovers_as_well(server, suite, die):
    folder, _ = die(1)
    folder.parent.rename(suite.registry)
    suite.write("def test_a(): pass")
    server.fail_always("DELETE", fs.slow(0.5))
    run = suite.run()
    assert (run.status, just_now(run.section)) == (0, "recovered 1 session of the run that died just now\n")
    assert not run.recorded


@pytest.mark.slow
def test_what_is_not_recovered_does_not_fail_the_run(server, suite, die):
    folder, ids = die(1)
    folder.parent.rename(suite.registry)
    suite.write("def test_a(): pass")
    server.fail_always("DELETE", fs.status(403))
    run = suite.run()
    assert run.status == 0
    assert "not yet recovered: 1 session of the run" in run.section
    assert run.alive == ids
    assert run.recorded
