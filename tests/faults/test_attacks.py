"""Attacks on the registry, by the API, and on the key: each ends in a sentence, in time, and with nobody else's loss."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import fault_server as faults
import pytest
from fault_server import KEY, FaultServer
from processes import CHECKOUT, within
from real_runs import Suite, environment, processes_in, until
from records import ERROR, opened
from side_by_side import side_by_side

from pytest_anchor import api as api_module
from pytest_anchor import reaper, registry
from pytest_anchor.__main__ import main
from pytest_anchor.api import AnchorAPI, Created
from pytest_anchor.errors import AnchorAPIError
from pytest_anchor.locks import JOURNAL
from pytest_anchor.recover import Recovery, recover_all
from pytest_anchor.registry import Record, Run, State
from pytest_anchor.report import Report
from pytest_anchor.session import AnchorSessionFactory, Owner
from pytest_anchor.settings import Settings, ci_run_id
from pytest_anchor.sweep import end_session, sweep_run
from pytest_anchor.tags import new_tag, run_tag

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

NOBODY = 65534
ROOT = os.geteuid() == 0
SLACK = 2.0  # seconds that something may take beyond its budget on a busy machine
SECRET = "SECRET"  # a part of the key that nothing else contains: what is cut off in the middle must not show it
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\x00\x7f"


def assert_plain(text: str) -> None:
    """Check that a terminal shows *text*, and does nothing else."""
    assert not {char for char in text if not char.isprintable()} - {"\n"}


@pytest.fixture
def here(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the command line finds its key, base URL and registry."""
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def next_run(here: Path, settings: Settings, quick: None) -> Callable[..., list[Recovery]]:
    """Recover as the next run in this folder does, without its pauses."""

    def next_run(**changes: object) -> list[Recovery]:
        theirs = settings._replace(folder=here / ".pytest_anchor" / "next", **changes)
        return list(recover_all(theirs, pauses=(0.01,), grace=0.0))

    return next_run


@pytest.fixture
def no_reaper_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    for pid in processes_in(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not processes_in(tmp_path))


def a_run(folder: Path, name: str) -> Run:
    run = Run(folder / ".pytest_anchor" / name, "main")
    run.join()
    return run


def a_dead_run(folder: Path, name: str) -> Run:
    run = a_run(folder, name)
    run.leave()
    return run


# What may lie in the place of a file, and must be neither followed nor waited for.


def victim(path: Path) -> Path:
    """A file beside the registry that a link may lead to."""
    return path.parent.parent.parent / "victim"


def link(path: Path) -> None:
    victim(path).write_text("precious")
    path.symlink_to(victim(path))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def junk(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00\x80" * 100)


def for_everybody(path: Path) -> None:
    path.touch()
    path.chmod(0o666)


def somebody_elses(path: Path) -> None:
    path.touch()
    if ROOT:
        os.chown(path, NOBODY, NOBODY)


def put_in_place(put: Callable[[Path], None], path: Path) -> None:
    path.unlink(missing_ok=True)
    put(path)


def assert_not_followed(path: Path) -> None:
    assert not victim(path).exists() or victim(path).read_text() == "precious"


@pytest.mark.parametrize("put", [link, fifo, folder, junk, for_everybody, somebody_elses])
@pytest.mark.parametrize(
    "name", ["main.owner", "gw9.owner", "sweep.lock", "journal.lock", "reaper.lock", "reaper.log", "local.alive"]
)
def test_an_odd_file_of_a_dead_run_hides_no_session_and_stops_no_recovery(
    server: FaultServer,
    api: AnchorAPI,
    here: Path,
    next_run: Callable[..., list[Recovery]],
    capsys: pytest.CaptureFixture[str],
    put: Callable[[Path], None],
    name: str,
):
    odd, good = a_dead_run(here, "a-odd"), a_dead_run(here, "b-good")
    theirs, ours = opened(server, api, odd, "a-odd-1"), opened(server, api, good, "b-good-1")
    put_in_place(put, odd.folder / name)
    assert within(5, lambda: main(["ls"])) == 1
    recovered = within(5, next_run)
    assert ours not in server.alive
    assert theirs not in server.alive or any(one.left or one.problem for one in recovered)
    capsys.readouterr()
    status = within(5, lambda: main(["sweep", "--timeout=5"]))
    assert theirs not in server.alive or (status and capsys.readouterr().err)
    assert_not_followed(odd.folder / name)


def test_a_registry_among_other_files_costs_none_of_them(suite: Suite):
    (suite.folder / "pytest.ini").write_text("[pytest]\nanchor_registry = .\naddopts = -p no:cacheprovider\n")
    precious = [suite.folder / name for name in ("src/a.py", ".git/config", "out/0123456789abcdef/screen.png")]
    for file in precious:
        file.parent.mkdir(parents=True)
        file.write_text("precious")
        os.utime(file.parent, (0, 0))
    suite.write("import os\ndef test_a(anchor_session):\n    anchor_session()\n")
    suite.write("import os\ndef test_a(anchor_session):\n    anchor_session()\n    os._exit(1)\n", "test_b.py")

    def foreign() -> list[Path]:
        return sorted(one for name in ("src", ".git", "out") for one in (suite.folder / name).rglob("*"))

    before = foreign()
    for _ in range(2):
        suite.run("test_b.py")
    suite.run("test_it.py")
    assert not suite.alive
    for command in (["ls"], ["sweep"], ["sweep", "--dry-run"]):
        assert main([*command, "--registry", str(suite.folder)]) == 0
    assert foreign() == before
    assert all(file.read_text() == "precious" for file in precious)


def test_the_command_that_a_run_advises_ends_what_it_left(suite: Suite, monkeypatch: pytest.MonkeyPatch):
    suite.server.fail_always("DELETE", faults.status(500))
    suite.write("def test_a(anchor_session): anchor_session()\n")
    run = suite.run_here("--anchor-registry", "else where", "--anchor-sweep-timeout=0.5")
    assert suite.alive
    (advice,) = re.findall(r"so does: (python -m pytest_anchor .*)", run.section)
    suite.server.fail_always("DELETE", None)
    monkeypatch.setenv("ANCHORBROWSER_API_KEY", KEY)  # and no base URL
    assert main(shlex.split(advice)[3:]) == 0
    assert not suite.alive


@pytest.mark.parametrize("put", [link, fifo, folder, junk])
def test_an_odd_lock_does_not_keep_the_reaper_from_its_work(
    server: FaultServer, api: AnchorAPI, run: Run, no_reaper_is_left: None, put: Callable[[Path], None]
):
    session = opened(server, api, run, "inv-1")
    assert reaper.ensure(run.folder, run_id="r1", base_url=api.base_url, key=KEY)
    put(run.folder / "gw9.owner")
    run.leave()
    until(lambda: session not in server.alive, 5)
    assert_not_followed(run.folder / "gw9.owner")


@pytest.mark.parametrize("put", [link, fifo, folder, junk])
@pytest.mark.parametrize("name", ["reaper.log", "reaper.start", "reaper.lock", "reaper.problem"])
def test_an_odd_file_of_the_reapers_is_a_reaper_or_a_reason(
    server: FaultServer, api: AnchorAPI, run: Run, no_reaper_is_left: None, put: Callable[[Path], None], name: str
):
    session = opened(server, api, run, "inv-1")
    put(run.folder / name)
    watched = within(5, lambda: reaper.ensure(run.folder, run_id="r1", base_url=api.base_url, key=KEY))
    reason = within(2, lambda: reaper.problem(run.folder))
    within(2, lambda: reaper.is_watching(run.folder))
    run.leave()
    if watched:
        until(lambda: session not in server.alive, 5)
    else:
        assert reason
    assert_not_followed(run.folder / name)


REPLACES = """
import os
from pathlib import Path

def test_it(anchor_session):
    anchor_session()
    (journal,) = Path(".pytest_anchor").glob("*/journal.jsonl")
    for name in ("reaper.lock", "reaper.log", "reaper.problem", "reaper.start", "sweep.lock"):
        path = journal.with_name(name)
        path.unlink(missing_ok=True)
        {put}
    anchor_session()
"""


@pytest.mark.parametrize(
    "put",
    ["path.symlink_to(Path('victim').absolute())", "os.mkfifo(path)", "path.mkdir()", "path.write_bytes(b'\\xff')"],
)
def test_files_replaced_under_a_run_cost_neither_its_summary_nor_the_key(suite: Suite, put: str):
    suite.write(REPLACES.format(put=put))
    (suite.folder / "victim").write_text("precious")
    show = ["-vv", "-l", "--tb=long", "--full-trace"]
    try:
        run = suite.run(*show, "--anchor-sweep-timeout=1", reaper=True)
    finally:
        suite.kill_leftovers()
    assert "created" in run.section
    assert not run.alive
    assert "INTERNALERROR" not in run.out
    assert SECRET not in run.out + run.err
    assert (suite.folder / "victim").read_text() == "precious"


# Registries that are not ours.


@pytest.mark.parametrize("whose", ["somebody else's", "everybody's"])
def test_a_registry_that_others_prepared_is_neither_recovered_nor_used(
    suite: Suite, server: FaultServer, api: AnchorAPI, whose: str
):
    if whose == "somebody else's" and not ROOT:
        pytest.skip("giving files away takes root")
    opened(server, api, a_dead_run(suite.folder, "dead"), "dead-1")
    if whose == "somebody else's":
        os.chown(suite.registry, NOBODY, NOBODY)
    else:
        suite.registry.chmod(0o777)
    suite.write("def test_a(anchor_session):\n    anchor_session()\ndef test_b(): pass\n")
    run = suite.run_here()
    assert run.outcomes == {"failed": 1, "passed": 1}
    assert f"the session registry '{suite.registry}' cannot be used: " in run.out
    assert not server.requests


@pytest.mark.parametrize(
    ("test", "status"),
    [("def test_a(): pass\n", 0), ("def test_a(anchor_session):\n    anchor_session()\n", 1)],
    ids=["no session", "a session"],
)
def test_a_registry_that_we_may_not_enter_is_no_trouble_to_those_who_need_none(suite: Suite, test: str, status: int):
    # What `sudo pytest` leaves to the user who runs it the next day.
    limited = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if ROOT else []
    if limited and not shutil.which("setpriv"):
        pytest.skip("root may enter everything, without setpriv")
    a_dead_run(suite.folder, "dead")
    suite.registry.chmod(0)
    suite.write(test)
    process = subprocess.Popen(
        [*limited, sys.executable, "-m", "pytest", "-p", "pytest_anchor", "-W", "error"],
        cwd=suite.folder,
        env=environment(**suite.server.env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate(timeout=60)
    suite.registry.chmod(0o700)
    assert process.returncode == status, out + err
    assert not err
    assert ("cannot be used" in out) == bool(status)
    assert not suite.server.requests


@pytest.mark.parametrize("what", ["shutil.rmtree('.pytest_anchor')", "os.rename('.pytest_anchor', 'elsewhere')"])
@pytest.mark.parametrize("watched", [False, True])
def test_a_registry_that_a_test_removes_leaks_nothing(suite: Suite, what: str, watched: bool):
    suite.write(f"import os, shutil\ndef test_a(anchor_session):\n    anchor_session(), anchor_session()\n    {what}\n")
    run = suite.run_here(reaper=watched)
    assert run.status == 0
    assert not run.alive
    assert "INTERNALERROR" not in run.out
    until(lambda: not suite.processes)


# Journals that were edited. Each edit appends lines to the journal of a dead run, `it.run`.


def created(nonce: str, session_id: str, seal: str) -> dict[str, object]:
    return {"event": "created", "nonce": nonce, "id": session_id, "seal": seal}


def intent(it: SimpleNamespace, nonce: str, **changes: object) -> dict[str, object]:
    fields = {"base_url": it.api.base_url, "fingerprint": it.api.fingerprint, "run_id": "r1", "place": it.run.place}
    return {"event": "intent", "nonce": nonce, "owner": "main", "test": "t", "time": time.time(), **fields, **changes}


def lines_of(run: Run) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.folder / JOURNAL).read_bytes().splitlines()]


def with_number(line: dict[str, object], name: str, number: bytes) -> bytes:
    return json.dumps({**line, name: "NUMBER"}).encode().replace(b'"NUMBER"', number)


EDITS: dict[str, Callable[[SimpleNamespace], list[dict[str, object] | bytes]]] = {
    "all, with a true seal": lambda it: [created(it.nonce, "all", it.api.seal(it.nonce, "all"))],
    "a path, with a true seal": lambda it: [created(it.nonce, "../x", it.api.seal(it.nonce, "../x"))],
    "a stranger, with the seal of another session": lambda it: [created(it.nonce, it.stranger, it.seal)],
    "a stranger, with the seal of another key": lambda it: [
        created(it.nonce, it.stranger, AnchorAPI(it.api.base_url, "other").seal(it.nonce, it.stranger))
    ],
    "a stranger, with the seal of another base URL": lambda it: [
        created(it.nonce, it.stranger, AnchorAPI(it.evil, KEY).seal(it.nonce, it.stranger))
    ],
    "the lines of a run that lives": lambda it: lines_of(it.live),
    "the lines of a run that lives, made to fit": lambda it: [
        {**line, "place": it.run.place} for line in lines_of(it.live)
    ],
    "the seal and id of a run that lives, for a nonce of its own": lambda it: [
        {**line, "nonce": it.nonce} for line in lines_of(it.live)
    ],
    "the run id of a run that lives": lambda it: [intent(it, it.nonce, run_id="live"), intent(it, f"{it.nonce}0")],
    "another server": lambda it: [intent(it, it.nonce, base_url=it.evil)],
    "another server for one more": lambda it: [
        intent(it, f"{it.nonce}0", base_url=it.evil),
        created(f"{it.nonce}0", "abc", AnchorAPI(it.evil, KEY).seal(f"{it.nonce}0", "abc")),
    ],
    "an id twice in a line": lambda it: [
        json.dumps(created(it.nonce, "abc", it.seal)).replace('"abc"', f'"abc", "id": "{it.stranger}"').encode()
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
    "a place without end": lambda it: [with_number(intent(it, it.nonce), "place", b"1e999")],
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
    it = SimpleNamespace(run=run, api=api, live=live, evil=evil.url, nonce=nonce, seal=api.seal(nonce, session_id))
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
    status = within(4, lambda: main(["sweep", "--timeout=1"]))
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
    within(10, lambda: sweep_run(api, run, "r1", timeout=0.3, pauses=(0.01,), grace=0.0))
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
    problem = within(10, lambda: sweep_run(api, run, "r1", timeout=0.5, pauses=(0.01,), grace=0.0))
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
        sweep_run(api, run, "r1", timeout=budget, pauses=(0.01,), grace=0.0)
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
            answers[number].wait(30)
            return act()

        return fault

    server.fail("DELETE", held(0), held(1))
    threads = []
    for number in range(2):
        opened(server, api, run, f"inv-{number}")
        record = run.read().records[f"inv-{number}"]
        deadline = time.monotonic() + 0.5
        ending = {"how": "test", "deadline": deadline}
        threads.append(threading.Thread(target=end_session, args=(api, run, record), kwargs=ending))
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
    report.recovered = [Recovery(Run(tmp_path, "test"), 0.0, given_up=records)]
    assert len(list(report.lines())) < 100


def test_a_copy_of_a_live_run_that_was_made_to_fit_finds_none_of_its_sessions(
    server: FaultServer, api: AnchorAPI, here: Path, live: Run, next_run: Callable[..., list[Recovery]]
):
    later = server.add(run_tag("live"), new_tag("live-2"))  # of which the copy does not know
    copy = here / "copied" / "live"
    shutil.copytree(live.folder, copy)
    it = SimpleNamespace(run=Run(copy, "test"), api=api)
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


# An API that wants to hold us, against everything that asks it.


def endless_headers(handler: faults._Handler, _act: Callable[[], faults.Answer]) -> None:
    faults.trickle(b"HTTP/1.1 200 OK\r\nX-Header: ")(handler, _act)


def redirect_with_a_long_body(handler: faults._Handler, _act: Callable[[], faults.Answer]) -> None:
    """More than anybody should read; to a client that does, it comes slowly."""
    handler.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 1000000000\r\n\r\n")
    faults.trickle(bytes(10 << 20))(handler, _act)


HOLDS = {
    "ten megabytes": faults.body(b"[" * (10 << 20)),
    "ten megabytes of a list": faults.body(json.dumps({"data": {"items": ["x" * 100] * 100_000}}).encode()),
    "a byte now and then": faults.trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"),
    "headers without end": endless_headers,
    "silence": faults.silent,
    "a redirect to nowhere": faults.body(b"", 302, Location="http://["),
    "a redirect to no text": faults.body(b"", 307, Location="\xff\x1b[2J"),
    "a redirect to itself": faults.body(b"", 308, Location="/v1/sessions/all"),
    "a redirect with a long body": redirect_with_a_long_body,
    "wait for 31 years": faults.status(503, Retry_After="999999999"),
    "wait for the year 9999": faults.status(429, Retry_After="Fri, 31 Dec 9999 23:59:59 GMT"),
    "wait for something": faults.status(503, Retry_After="\x1b[2J soon"),
    "a cookie": faults.body(b"{}", 200, Set_Cookie="\xff=\x1b; Max-Age=" + "9" * 400),
}
BUDGET = 0.4  # seconds


def reap(_api: AnchorAPI, run: Run, _settings: Settings) -> None:
    reaper._reap(str(run.folder), json.dumps({"run_id": "r1", "base_url": _api.base_url, "key": KEY, "remove": False}))


ASKERS: list[Callable[[AnchorAPI, Run, Settings], object]] = [
    lambda api, run, _settings: sweep_run(api, run, "r1", timeout=BUDGET),
    lambda _api, run, settings: list(recover_all(settings._replace(folder=run.folder.parent / "next"))),
    lambda _api, run, _settings: main(["sweep", f"--timeout={BUDGET}", f"--registry={run.folder.parent}"]),
    lambda _api, _run, _settings: main(["sweep", f"--timeout={BUDGET}", "--run-id=r1"]),
    lambda _api, _run, _settings: main(["end", f"--timeout={BUDGET}", "abc"]),
    lambda _api, _run, _settings: main(["ls", "--remote"]),
    reap,
]


@pytest.mark.parametrize("name", HOLDS)
def test_no_answer_holds_anybody_beyond_his_budget(
    server: FaultServer,
    here: Path,
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
):
    monkeypatch.setattr(api_module, "CALL_TIMEOUT", BUDGET / 4)  # of which `ls --remote` takes four
    monkeypatch.setattr(reaper, "BUDGET", BUDGET)
    api = AnchorAPI(server.url, KEY)
    for method in ("GET", "DELETE"):
        server.fail_always(method, HOLDS[name])

    def ask(number: int) -> None:
        run = a_dead_run(here / str(number), "dead")
        opened(server, api, run, "dead-1")
        before = time.monotonic()
        within(10, lambda: ASKERS[number](api, run, settings._replace(sweep_timeout=BUDGET)))
        assert time.monotonic() - before < BUDGET + SLACK

    side_by_side(ask, range(len(ASKERS)), len(ASKERS))
    out, err = capsys.readouterr()
    assert_plain(out + err)
    assert SECRET not in out + err
    assert server.count("DELETE", "/v1/sessions/all") == 0


REDIRECTED = """
import pytest

def test_cannot_end(anchor_session):
    anchor_session()

@pytest.mark.parametrize("time", range(3))
def test_cannot_create(anchor_session, time):
    anchor_session()
"""


def test_redirects_to_nowhere_are_answers_like_any_other(suite: Suite):
    nowhere, no_text = HOLDS["a redirect to nowhere"], HOLDS["a redirect to no text"]
    suite.server.fail("POST", faults.slow(0), nowhere, no_text, faults.body(b"{}", 200, Location="http://["))
    for method in ("GET", "DELETE"):
        suite.server.fail_always(method, nowhere)
    suite.write(REDIRECTED)
    run = suite.run_here("-l", "--tb=long", "--full-trace", "--anchor-sweep-timeout=0.5")
    assert run.outcomes == {"failed": 3, "passed": 1}
    assert "4 sessions" not in run.section
    assert "1 session created: 1 leaked, 3 unresolved" in run.section
    assert SECRET not in run.out + run.err


# Words for a terminal, from the API to everything that is written.


def test_nothing_of_the_api_reaches_a_terminal_or_a_file_raw(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    refusal = {"error": {"code": HOSTILE, "message": HOSTILE}}
    suite.server.fail_always("DELETE", faults.body(json.dumps(refusal).encode(), 403))

    def list_with_words(_handler: faults._Handler, act: Callable[[], faults.Answer]) -> faults.Answer:
        status, headers, body = act()
        data = json.loads(body)["data"]
        for item in data["items"]:
            item["status"], item["created_at"] = HOSTILE, HOSTILE
            item["tags"].insert(0, f"pytest-anchor:run={HOSTILE}")
        return status, headers, json.dumps({"data": data}).encode()

    suite.server.fail_always("GET", list_with_words)
    suite.server.fail("POST", faults.slow(0), faults.body(json.dumps({"data": {"id": HOSTILE}}).encode()))
    suite.write("def test_a(anchor_session): anchor_session()\ndef test_b(anchor_session): anchor_session()\n")
    run = suite.run("--junitxml=report.xml", "-rA", "--anchor-sweep-timeout=0.3", reaper=True)
    assert "1 session created: 1 leaked, 1 unresolved" in run.section
    (log,) = suite.registry.glob("*/reaper.log")
    until(lambda: "HTTP 403" in log.read_text())
    suite.kill_leftovers()  # it goes on looking for the creation that was lost
    until(lambda: not suite.processes)
    monkeypatch.chdir(suite.folder)
    for name, value in suite.server.env.items():
        monkeypatch.setenv(name, value)
    for command in ("ls", "ls --json", "ls --remote", "ls --remote --json", "sweep --timeout=1", "end --timeout=1 abc"):
        assert main(command.split()) == 1
    out, err = capsys.readouterr()
    assert r"\x1b" in err
    for text in (run.out, run.err, (suite.folder / "report.xml").read_text(), log.read_text(), out, err):
        assert_plain(text)


# The key.


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_ctrl_c_during_a_request_does_not_show_the_key(suite: Suite, method: str):
    suite.server.fail(method, faults.silent)
    suite.write("def test_a(anchor_session):\n    anchor_session().end()\n")
    process = suite.start("--full-trace", "-vv", "-l", "--anchor-sweep-timeout=1")
    until(lambda: suite.server.count(method))
    process.send_signal(signal.SIGINT)
    run = suite.finish(process)
    assert run.status == 2
    assert "KeyboardInterrupt" in run.out
    assert SECRET not in run.out + run.err


SLOW_REAPER = """
import pathlib, sys, time
if "pytest_anchor.reaper" in sys.orig_argv:
    pathlib.Path(__file__).with_name("begun").touch()
    time.sleep(3)
"""


def test_ctrl_c_while_the_reaper_starts_does_not_show_the_key(suite: Suite):
    suite.write(SLOW_REAPER, "sitecustomize.py")
    suite.write("def test_a(anchor_session):\n    anchor_session()\n")
    env = {**environment(**suite.server.env), "PYTHONPATH": f"{suite.folder}:{CHECKOUT}"}
    process = suite.start("--full-trace", "-vv", "-l", reaper=True, env=env)
    until((suite.folder / "begun").exists)
    process.send_signal(signal.SIGINT)
    run = suite.finish(process)
    assert run.status == 2
    assert "secret = '***'" in run.out
    assert SECRET not in run.out + run.err
    assert not suite.server.count("POST")
    suite.wait_for_quiet()


EXITS = """
import signal, pytest

def test_a(anchor_session):
    signal.signal(signal.SIGUSR1, lambda *_: pytest.exit("too late", returncode=7))
    anchor_session()
"""


def test_an_exit_during_a_request_does_not_show_the_key(suite: Suite):
    suite.server.fail("POST", faults.silent)
    suite.write(EXITS)
    process = suite.start("--full-trace", "-vv", "-l", "--anchor-sweep-timeout=1")
    until(lambda: suite.server.count("POST"))
    process.send_signal(signal.SIGUSR1)
    run = suite.finish(process)
    assert run.status == 7
    assert "too late" in run.out
    assert SECRET not in run.out + run.err


@pytest.mark.parametrize("workers", [0, 1])
def test_the_key_is_in_no_warning(suite: Suite, workers: int):
    suite.write("import warnings\ndef test_a(anchor_session):\n    warnings.warn(anchor_session().cdp_url)\n")
    run = suite.run_here("-W", "default", workers=workers)
    assert run.outcomes == {"passed": 1, "warning": 1}
    assert SECRET not in run.out + run.err


def test_a_key_that_a_url_must_quote_is_not_seen_either(suite: Suite):
    key = "sk/SECRET+4711=="
    suite.server.keys = {key}

    def with_the_key_quoted(_handler: faults._Handler, act: Callable[[], faults.Answer]) -> faults.Answer:
        status, headers, body = act()
        return status, headers, body.replace(KEY.encode(), quote(key, safe="").encode())

    suite.server.fail_always("POST", with_the_key_quoted)
    suite.write("def test_a(anchor_session):\n    print(anchor_session().cdp_url)\n    assert 0\n")
    run = suite.run_here(env=environment(ANCHORBROWSER_API_KEY=key, ANCHORBROWSER_BASE_URL=suite.server.url))
    assert run.outcomes == {"failed": 1}
    assert "apiKey=***" in run.out
    assert SECRET not in run.out + run.err


def test_the_key_is_in_no_repr_and_no_pickle_of_an_error(server: FaultServer, owner: Owner):
    run, api = owner.open()
    factory = AnchorSessionFactory(owner, {}, lambda: "t")
    session = factory()
    report = Report(run.read(), run.folder)
    report.recovered = [Recovery(run, 0.0)]
    secretive = Created("abc", f"ws://127.0.0.1/?apiKey={KEY}", f"http://127.0.0.1/?apiKey={KEY}")
    things = [owner, api, run, factory, session, report, report.recovered, owner.settings, secretive, report.state]
    for thing in [
        *things,
        *(list(vars(one).values()) for one in things if hasattr(one, "__dict__") and one not in (api, secretive)),
    ]:
        if thing is not None:
            assert SECRET not in repr(thing).replace(repr(owner.settings.api_key), "the key itself")
    not_json = faults.body(KEY.encode(), 500)
    server.fail("POST", faults.status(402, KEY), not_json, faults.body(f'{{"data": {{"id": "{KEY} "}}}}'.encode()))
    for _ in range(3):
        with pytest.raises(AnchorAPIError, match=r"\*\*\*") as caught:
            factory()
        assert SECRET.encode() not in pickle.dumps(caught.value)


WAITS = """
import time
from pathlib import Path

def test_a(anchor_session):
    anchor_session()
    Path("there").touch()
    while not Path("go").exists():
        time.sleep(0.02)
"""


def test_no_process_of_a_run_has_the_key_in_its_arguments_and_its_reaper_none_in_its_environment(suite: Suite):
    suite.write(WAITS)
    process = suite.start(workers=1, reaper=True)
    until((suite.folder / "there").exists)
    seen = {command: Path(f"/proc/{pid}/environ").read_bytes() for pid, command in suite.processes.items()}
    (suite.folder / "go").touch()
    assert suite.finish(process).status == 0
    assert len(seen) == 3  # the controller, a worker and the reaper
    assert SECRET not in str(list(seen))
    assert [SECRET.encode() in environ for command, environ in seen.items() if "pytest_anchor.reaper" in command] == [
        False
    ]


# Modules in the suite's folder.


@pytest.mark.parametrize("path", ["", ":", ".", "tests:."], ids=repr)
def test_the_reaper_imports_nothing_from_the_folder_that_it_is_started_in(
    server: FaultServer,
    api: AnchorAPI,
    run: Run,
    no_reaper_is_left: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
):
    cwd = tmp_path / "suite"
    for name in ("json.py", "requests.py", "filelock.py", "urllib3/__init__.py", "pytest_anchor/__init__.py"):
        for folder in (cwd, cwd / "tests"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("PYTHONPATH", f"{path}{os.pathsep}{CHECKOUT}" if path != ":" else f":{CHECKOUT}")
    session = opened(server, api, run, "inv-1")
    watched = reaper.ensure(run.folder, run_id="r1", base_url=api.base_url, key=KEY)
    run.leave()
    assert not (tmp_path / "imported").exists()
    assert watched
    until(lambda: session not in server.alive, 5)
    assert not (tmp_path / "imported").exists()


# Run ids.


def test_a_long_name_of_a_ci_run_stays_its_own():
    job = "jenkins-" + "folder-" * 20
    assert ci_run_id({"BUILD_TAG": f"{job}-1"}) != ci_run_id({"BUILD_TAG": f"{job}-2"})
