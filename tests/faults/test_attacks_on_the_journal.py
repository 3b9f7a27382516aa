"""Journals that were edited, copied or grown without end: nothing else is ended, and it is reported."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import fault_server as faults
import pytest
from attacks import HOSTILE, SLACK, a_dead_run, a_run, assert_plain
from fault_server import KEY, FaultServer
from processes import within
from real_runs import Suite, environment, until
from records import ERROR, opened

from pytest_anchor.__main__ import main
from pytest_anchor.api import AnchorAPI
from pytest_anchor.cleanup.ending import end_sessions
from pytest_anchor.cleanup.policy import SweepPolicy
from pytest_anchor.cleanup.recovery import Recovery
from pytest_anchor.cleanup.sweep import SweepTarget, sweep_run
from pytest_anchor.registry import journal as registry
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.locks import JOURNAL
from pytest_anchor.registry.records import Record, State
from pytest_anchor.reporting.summary import Report
from pytest_anchor.tags import new_tag, run_tag

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]


# Journals that were edited. Each edit appends lines to the journal of a dead run, `it.run`.


def created(nonce: str, session_id: str, signature: str) -> dict[str, object]:
    return {"event": "created", "nonce": nonce, "id": session_id, "signature": signature}


def intent(it: SimpleNamespace, nonce: str, **changes: object) -> dict[str, object]:
    fields = {
        "base_url": it.api.base_url,
        "fingerprint": it.api.fingerprint,
        "run_id": "r1",
        "folder_inode": it.run.folder_inode,
    }
    return {"event": "intent", "nonce": nonce, "owner": "main", "test": "t", "time": time.time(), **fields, **changes}


def lines_of(run: Run) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.folder / JOURNAL).read_bytes().splitlines()]


def with_number(line: dict[str, object], name: str, number: bytes) -> bytes:
    return json.dumps({**line, name: "NUMBER"}).encode().replace(b'"NUMBER"', number)


EDITS: dict[str, Callable[[SimpleNamespace], list[dict[str, object] | bytes]]] = {
    "all, with a true signature": lambda it: [created(it.nonce, "all", it.api.sign(it.nonce, "all"))],
    "a path, with a true signature": lambda it: [created(it.nonce, "../x", it.api.sign(it.nonce, "../x"))],
    "a stranger, with the signature of another session": lambda it: [created(it.nonce, it.stranger, it.signature)],
    "a stranger, with the signature of another key": lambda it: [
        created(it.nonce, it.stranger, AnchorAPI(it.api.base_url, "other").sign(it.nonce, it.stranger))
    ],
    "a stranger, with the signature of another base URL": lambda it: [
        created(it.nonce, it.stranger, AnchorAPI(it.evil, KEY).sign(it.nonce, it.stranger))
    ],
    "the lines of a run that lives": lambda it: lines_of(it.live),
    "the lines of a run that lives, made to fit": lambda it: [
        {**line, "folder_inode": it.run.folder_inode} for line in lines_of(it.live)
    ],
    "the signature and id of a run that lives, for a nonce of its own": lambda it: [
        {**line, "nonce": it.nonce} for line in lines_of(it.live)
    ],
    "the run id of a run that lives": lambda it: [intent(it, it.nonce, run_id="live"), intent(it, f"{it.nonce}0")],
    "another server": lambda it: [intent(it, it.nonce, base_url=it.evil)],
    "another server for one more": lambda it: [
        intent(it, f"{it.nonce}0", base_url=it.evil),
        created(f"{it.nonce}0", "abc", AnchorAPI(it.evil, KEY).sign(f"{it.nonce}0", "abc")),
    ],
    "an id twice in a line": lambda it: [
        json.dumps(created(it.nonce, "abc", it.signature)).replace('"abc"', f'"abc", "id": "{it.stranger}"').encode()
    ],
    "a nonce that is no text": lambda it: [
        line
        for number in range(20)
        for line in (
            intent(it, f"{it.run.folder.name}-\ud800{number}"),
            created(f"{it.run.folder.name}-\ud800{number}", "x", "0"),
        )
    ],
    "a time without end": lambda it: [with_number(intent(it, it.nonce), "time", b"1e999")],
    "a time that is none": lambda it: [with_number(intent(it, it.nonce), "time", b"NaN")],
    "a time long ago": lambda it: [intent(it, it.nonce, time=-1e308)],
    "a time to come": lambda it: [intent(it, it.nonce, time=1e308)],
    "a place without end": lambda it: [with_number(intent(it, it.nonce), "folder_inode", b"1e999")],
    "tries without end": lambda it: [
        {"event": "failed", "nonce": it.nonce, "error": {**ERROR, "tries": 10**4300 - 1, "status": 10**4299}}
    ],
    "words for a terminal": lambda it: [
        intent(it, it.nonce, test=HOSTILE, owner=HOSTILE),
        {"event": "failed", "nonce": it.nonce, "error": {**ERROR, "message": HOSTILE, "code": HOSTILE}},
    ],
    "deep nesting": lambda _it: [b"[" * 100_000, b'{"event":' * 100_000],
    "a line of two megabytes": lambda it: [intent(it, it.nonce, test="x" * (2 << 20))],
    "binary junk": lambda _it: [bytes(range(256)), b"\xff\xfe\x00", b"\0", b""],
    "no objects": lambda _it: [b"1", b"null", b'"all"', b"[]", b"{}"],
}


def edited(run: Run, edit: str, server: FaultServer, api: AnchorAPI, live: Run, evil: FaultServer) -> str:
    """Append the lines of an *edit* to the journal of a dead run; its session's id."""
    nonce = f"{run.folder.name}-1"
    session_id = opened(server, api, run, nonce)
    it = SimpleNamespace(run=run, api=api, live=live, evil=evil.url, nonce=nonce, signature=api.sign(nonce, session_id))
    it.stranger = server.add("theirs")
    with (run.folder / JOURNAL).open("ab") as journal:
        for line in EDITS[edit](it):
            journal.write((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")
    return session_id


@pytest.fixture
def evil() -> Iterator[FaultServer]:
    """A server that is not to hear anything."""
    with FaultServer() as evil:
        yield evil
        assert not evil.headers


@pytest.fixture
def live(server: FaultServer, api: AnchorAPI, tmp_path: Path) -> Iterator[Run]:
    """A run that lives and has a session."""
    run = a_run(tmp_path, "live")
    session_id = opened(server, api, run, "live-1")
    server.sessions[session_id].tags = [run_tag("live"), new_tag("live-1")]
    yield run
    assert session_id in server.alive
    run.leave()


def assert_only_these_were_ended(server: FaultServer, ids: list[str]) -> None:
    paths = {path for method, path in server.requests if method == "DELETE"}
    assert paths <= {f"/v1/sessions/{one}" for one in ids}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_journal_ends_nothing_else_and_is_told(
    server: FaultServer,
    api: AnchorAPI,
    here: Path,
    live: Run,
    evil: FaultServer,
    next_run: Callable[..., list[Recovery]],
    capsys: pytest.CaptureFixture[str],
    edit: str,
):
    ours = edited(a_dead_run(here, "dead"), edit, server, api, live, evil)
    server.fail("DELETE", faults.status(403), faults.status(403))  # what cannot be ended is told, too
    for command in (["ls"], ["ls", "--json"], ["sweep", "--dry-run"]):
        assert within(4, lambda command=command: main(command)) == 1
    status = within(11, lambda: main(["sweep", "--timeout=8"]))
    report = Report(State(), here)
    report.recovered = within(4, next_run)
    out, err = capsys.readouterr()
    assert ours not in server.alive or report.recovered or "GAVE UP" in err
    assert status == 1 or "GAVE UP" in err
    assert_plain(out + err + "".join(line.text for line in report.lines()))
    assert len(max((out + err).splitlines(), key=len)) < 2000
    assert_only_these_were_ended(server, [ours])


def test_the_next_run_copes_with_all_of_them_at_once(
    suite: Suite, server: FaultServer, api: AnchorAPI, live: Run, evil: FaultServer
):
    ours = [
        edited(a_dead_run(suite.folder, f"dead{number}"), edit, server, api, live, evil)
        for number, edit in enumerate(EDITS)
    ]
    server.fail_always("DELETE", faults.once_each(faults.status(403, HOSTILE)))
    suite.write("def test_a(): pass\n")
    run = suite.run_here("--anchor-sweep-timeout=0.5")
    assert run.status == 0
    assert not run.err
    assert_plain(run.out)
    assert_only_these_were_ended(server, ours)
    assert "not yet recovered: 1 session of the run that died" in run.section


def test_forged_records_do_not_hold_a_sweep_beyond_its_budget(server: FaultServer, api: AnchorAPI, tmp_path: Path):
    run = a_dead_run(tmp_path, "dead")
    it = SimpleNamespace(run=run, api=api)
    with (run.folder / JOURNAL).open("w") as journal:
        for number in range(10_000):
            for line in (intent(it, f"dead-{number}"), created(f"dead-{number}", f"x{number}", "0" * 32)):
                journal.write(json.dumps(line) + "\n")
    run.read()
    size = (run.folder / JOURNAL).stat().st_size
    within(10, lambda: sweep_run(SweepTarget(api, run, "r1"), SweepPolicy(pauses=(0.01,), grace=0.0), timeout=0.3))
    assert (run.folder / JOURNAL).stat().st_size - size < 100_000  # what takes the time is to write each of them down
    assert server.count("DELETE") == 0


def test_a_list_without_end_does_not_hold_a_sweep_beyond_its_budget(
    server: FaultServer, api: AnchorAPI, tmp_path: Path
):
    run = a_dead_run(tmp_path, "dead")
    opened(server, api, run, "dead-1")
    items = [
        {"session_id": f"x{number}", "status": "running", "tags": [run_tag("r1"), new_tag(f"dead-x{number}")]}
        for number in range(40_000)
    ]
    server.fail_always("GET", faults.body(json.dumps({"data": {"items": items}}).encode()))
    problem = within(
        10,
        lambda: sweep_run(
            SweepTarget(api, run, "r1"),
            SweepPolicy(pauses=(0.01,), grace=0.0, always_lists=True, ends_unrecorded=True),
            timeout=0.5,
        ),
    )
    assert problem is not None
    assert len(run.state.records) < len(items)


@pytest.mark.parametrize(("patience", "budget"), [(0.3, 1.5), (10.0, 0.5)])
def test_a_journal_that_somebody_has_locked_does_not_hold_a_sweep_beyond_its_budget(
    server: FaultServer, api: AnchorAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, budget: float
):
    monkeypatch.setattr(registry, "LOCK_TIMEOUT", patience)
    run = a_dead_run(tmp_path, "dead")
    ids = {opened(server, api, run, f"dead-{number}") for number in range(20)}
    lock = os.open(run.folder / "journal.lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = time.monotonic()
        sweep_run(SweepTarget(api, run, "r1"), SweepPolicy(pauses=(0.01,), grace=0.0), timeout=budget)
        assert time.monotonic() - before < budget + SLACK
    finally:
        os.close(lock)
    # Who finds out within the time that there is no writing ends them all the same.
    assert patience > budget or not ids & set(server.alive)


def test_two_ends_at_once_leave_no_deadline_behind(server: FaultServer, api: AnchorAPI, run: Run):
    answers = [threading.Event(), threading.Event()]
    waiting = [threading.Event(), threading.Event()]

    def held(number: int) -> faults.Fault:
        def fault(_handler: faults._Handler, act: Callable[[], faults.Answer]) -> faults.Answer:
            waiting[number].set()
            answers[number].wait()
            return act()

        return fault

    server.fail("DELETE", held(0), held(1))
    threads = []
    for number in range(2):
        opened(server, api, run, f"inv-{number}")
        record = run.read().records[f"inv-{number}"]
        deadline = time.monotonic() + 0.5
        ending = {"policy": SweepPolicy("test"), "deadline": deadline}
        threads.append(threading.Thread(target=end_sessions, args=(api, run, [record]), kwargs=ending))
        threads[-1].start()
        assert waiting[number].wait(5)
    for thread, answer in zip(threads, answers, strict=True):
        answer.set()
        thread.join(5)
    until(lambda: time.monotonic() > deadline)
    lock = os.open(run.folder / "journal.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    other_writer = threading.Timer(0.1, os.close, (lock,))
    other_writer.start()
    run.append("refused", "inv-9")
    other_writer.join()


def test_of_many_that_are_given_up_the_first_are_written_out(tmp_path: Path):
    records = [Record(f"dead-{number}", id=f"x{number}", state="open") for number in range(10_000)]
    report = Report(State(), tmp_path)
    report.recovered = [Recovery(Run(tmp_path), 0.0, given_up=records)]
    assert len(list(report.lines())) < 100


def test_a_copy_of_a_live_run_that_was_made_to_fit_finds_none_of_its_sessions(
    server: FaultServer, api: AnchorAPI, here: Path, live: Run, next_run: Callable[..., list[Recovery]]
):
    later = server.add(run_tag("live"), new_tag("live-2"))  # of which the copy does not know
    copy = here / "copied" / "live"
    shutil.copytree(live.folder, copy)
    it = SimpleNamespace(run=Run(copy), api=api)
    with (copy / JOURNAL).open("a") as journal:
        journal.write(json.dumps(intent(it, "live-9", run_id="live")) + "\n")
    assert within(5, lambda: main(["sweep", "--timeout=2", f"--registry={copy.parent}"])) == 1
    assert later in server.alive


# A base URL that changes between runs.


def test_what_was_created_elsewhere_is_not_sent_to_the_base_url_of_today(
    suite: Suite, server: FaultServer, api: AnchorAPI, evil: FaultServer, monkeypatch: pytest.MonkeyPatch
):
    session_id = opened(server, api, a_dead_run(suite.folder, "dead"), "dead-1")
    suite.write("def test_a(): pass\n")
    run = suite.run_here(env=environment(**evil.env))
    assert run.status == 0
    assert "left alone: 1 session of the run that died" in run.section
    monkeypatch.chdir(suite.folder)
    for name, value in evil.env.items():
        monkeypatch.setenv(name, value)
    assert main(["sweep", "--timeout=5"]) == 1
    assert session_id in server.alive
