"""The journal: reading, locks, several writers."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from processes import script
from records import ERROR, INTENT, NO_IDS, intend, journal, journal_line

from pytest_anchor.errors import AnchorRegistryError
from pytest_anchor.registry import folders
from pytest_anchor.registry import journal as registry
from pytest_anchor.registry.journal import MAX_LINE, Run

# reading


def test_reading_goes_on_where_it_stopped(run):
    intend(run, "n1")
    state = run.read()
    size = journal(run).stat().st_size
    assert run._offset == size
    journal(run).write_bytes(b"#" * size)  # what was read is not read again
    intend(run, "n2")
    assert run.read() is state
    assert list(state.records) == ["n1", "n2"]
    assert state.unreadable == 0


def test_another_process_sees_what_was_written(run):
    intend(run, "n1")
    other = Run(run.folder)
    assert list(other.read().records) == ["n1"]
    intend(other, "n2", owner="gw0")
    assert list(run.read().records) == ["n1", "n2"]
    assert run.state.records["n2"].owner == "gw0"


def test_what_is_written_is_known_at_once_and_not_read_again(run):
    intend(run, "n1")
    run.append("created", "n1", id="abc", signature="s")
    assert run.state.records["n1"].id == "abc"
    size = journal(run).stat().st_size
    journal(run).write_bytes(b"#" * (size - 1) + b"\n")
    assert list(run.read().records) == ["n1"]
    assert run.state.unreadable == 0


def test_what_is_written_after_anothers_line_does_not_hide_it(run):
    intend(run, "n1")
    other = Run(run.folder)
    intend(other, "n2")
    intend(run, "n3")
    assert run.known("n3").nonce == "n3"
    assert list(run.read().records) == ["n1", "n2", "n3"]
    assert list(other.read().records) == ["n1", "n2", "n3"]
    assert run.state.unreadable == other.state.unreadable == 0


def test_what_is_written_after_a_torn_line_is_known(run):
    intend(run, "n1")
    with journal(run).open("ab") as file:
        file.write(b'{"event":"intent","non')
    intend(run, "n2")
    record = run.known("n2")
    run.append("refused", "n2")
    assert run.known("n2") is record
    assert record.state == "refused"


def test_what_is_on_record_only_is_known_when_it_is_asked_for(run):
    intend(run, "n1")
    assert Run(run.folder).known("n1").test == "t.py::x"
    with pytest.raises(KeyError):
        run.known("n2")


def test_without_a_journal_there_is_nothing(tmp_path):
    assert Run(tmp_path / "none").read().records == {}


def test_a_torn_tail_is_skipped_and_closed_off(run):
    intend(run, "n1")
    with journal(run).open("ab") as file:
        file.write(b'{"event":"created","nonce":"n1","id":"ab')
    assert run.read().records["n1"].state == "pending"
    intend(run, "n2")
    state = run.read()
    assert list(state.records) == ["n1", "n2"]
    assert state.records["n1"].state == "pending"
    assert state.unreadable == 0
    assert list(Run(run.folder).read().records) == ["n1", "n2"]


def test_half_a_line_is_read_once_it_is_whole(run):
    intend(Run(run.folder), "n1")
    whole = journal(run).read_bytes()
    journal(run).write_bytes(whole[:20])
    assert run.read().records == {}
    journal(run).write_bytes(whole)
    assert list(run.read().records) == ["n1"]


CREATED = {"event": "created", "nonce": "y", "id": "abc", "signature": "s"}
LOST = {"event": "lost", "nonce": "y", "time": 1, "error": ERROR}
FAILED = {"event": "failed", "nonce": "y", "error": ERROR}
ENDED = {"event": "ended", "nonce": "y", "ended_by": "test", "already": False}
WAITED = {"event": "waited", "nonce": "y", "rate": 1.5, "slot": 0.5}
LIMITED = {"event": "limited", "nonce": "y", "time": 1}
KEPT = {"event": "evidence", "nonce": "y", "kind": "screenshot", "path": "a.png", "test": "t"}
RUN = {"event": "run", "nonce": "", "cap": 5, "prefetch": 2, "end_in_background": True}
TESTED = {"event": "tested", "nonce": "y", "test": "t", "began": 1, "ended": 2, "outcome": "passed"}


@pytest.mark.parametrize("line", [INTENT, CREATED, LOST, FAILED, ENDED], ids=lambda line: line["event"])
def test_what_the_lines_below_are_made_of_is_an_event(run, line):
    journal(run).write_bytes(journal_line(line) + b"\n")
    assert run.read().unreadable == 0
    assert list(run.state.records) == [line["nonce"]]


NO_MOMENTS = ["noon", -1, 1e12, 10**400, float("nan"), [1]]
GARBAGE = [
    b"garbage",
    b"",
    b"[]",
    b"null",
    b"7",
    b'"text"',
    b"\xff\xfe",
    b"{}",
    b'{"nonce":"y"}',
    journal_line(CREATED, nonce=None),
    journal_line(CREATED, id=None),
    journal_line(CREATED, signature=None),
    *(journal_line(CREATED, signature=one) for one in ["é", "\ud800", 7, ["s"], {}]),
    journal_line(CREATED, event="nonsense"),
    journal_line(CREATED, event=["created"]),
    journal_line(LOST, error=7),
    journal_line(LOST, time=None),
    journal_line(FAILED, error=None),
    journal_line(FAILED, error={**ERROR, "tries": "many"}),
    journal_line(FAILED, error={"status": 500}),
    journal_line(ENDED, ended_by=None),
    *(journal_line(INTENT, **{name: None}) for name in INTENT),
    journal_line(INTENT, time="noon"),
    journal_line(INTENT, time=10**400),
    journal_line(INTENT, folder_inode="here"),
    *(journal_line(INTENT, retried=one) for one in (-1, 10**7, "often", 1e999)),
    *(journal_line(WAITED, rate=one) for one in (-0.1, 10**7, "long", float("nan"), [])),
    journal_line(WAITED, slot=None),
    *(journal_line(WAITED, quota=one, window=3) for one in (-1, 10**7, "many")),
    *(journal_line(WAITED, quota=5, window=one) for one in (-1, 10**7, float("nan"), "long")),
    *(journal_line(RUN, **{name: None}) for name in ("cap", "prefetch", "end_in_background")),
    *(journal_line(RUN, cap=one) for one in (-1, 10**7, "all")),
    *(journal_line({**INTENT, "event": "taken"}, waited=one) for one in (-1, 10**7, float("inf"))),
    *(journal_line(one, time=when) for one in (CREATED, ENDED, WAITED, LIMITED) for when in NO_MOMENTS),
    *(journal_line(one, began=when) for one in (FAILED, ENDED, TESTED) for when in NO_MOMENTS),
    *(journal_line(TESTED, **{name: None}) for name in TESTED),
    *(journal_line(TESTED, outcome=one) for one in ("great", ["passed"], 7)),
    journal_line(TESTED, ended=0.5),
    *(journal_line({**ENDED, "event": "kept"}, until=when) for when in [None, *NO_MOMENTS]),
    *(journal_line(KEPT, **{name: None}) for name in KEPT),
    *(journal_line(KEPT, kind=one) for one in ("film", ["screenshot"], 7)),
    journal_line(TESTED, rerun=-1),
    journal_line(LIMITED, time=None),
    *(journal_line(one, nonce="é") for one in (INTENT, CREATED, WAITED, LIMITED, TESTED, KEPT)),
    journal_line(INTENT)[:-1],
    *(journal_line(CREATED, id=one) for one in [*NO_IDS, 7, True, ["all"], {}]),
    b"[" * 100_000,
]


@pytest.mark.parametrize("line", GARBAGE, ids=lambda line: repr(line[:40]))
def test_a_line_that_is_no_event_is_counted(run, line):
    intend(run, "n1")
    with journal(run).open("ab") as file:
        file.write(line + b"\n")
    intend(run, "n2")
    state = run.read()
    assert state.unreadable == 1
    assert set(state.records) == {"n1", "n2"}
    run.read()
    assert state.unreadable == 1


@pytest.mark.parametrize("size", [MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE, 5 * MAX_LINE + 7])
def test_a_line_of_a_megabyte_and_more_is_one_that_cannot_be_read(run, size):
    intend(run, "n1")
    with journal(run).open("ab") as file:
        file.write(journal_line(INTENT, test="x" * size) + b"\n")
    intend(run, "n2")
    state = run.read()
    assert (list(state.records), state.unreadable) == (["n1", "n2"], 1)


def test_a_line_of_just_below_a_megabyte_is_read(run):
    room = MAX_LINE - len(journal_line(INTENT, test="")) - len("\n")
    journal(run).write_bytes(journal_line(INTENT, test="x" * room) + b"\n")
    assert len(run.read().records["n"].test) == room


@pytest.mark.parametrize("size", [MAX_LINE, 3 * MAX_LINE + 7])
def test_a_huge_torn_line_does_not_hide_what_follows(run, size):
    intend(run, "n1")
    with journal(run).open("ab") as file:
        file.write(b"x" * size)
    assert list(run.read().records) == ["n1"]
    intend(run, "n2")
    state = run.read()
    assert (list(state.records), state.unreadable) == (["n1", "n2"], 1)


def test_very_many_lines_are_read_in_seconds(run):
    intend(run, "n1")
    with journal(run).open("ab") as file:
        file.write(b'{"event":"refused","nonce":"n1"}\n' * 200_000)
    intend(run, "n2")
    before = time.monotonic()
    assert set(run.read().records) == {"n1", "n2"}
    first = time.monotonic() - before
    assert first < 60
    assert run.read().unreadable == 0
    assert time.monotonic() - before - first < first / 2, "what is read already is read again"


# the broker's lock


def test_a_run_is_alive_until_its_broker_leaves(run):
    assert run.is_live
    assert Run(run.folder).is_live
    run.leave()
    assert not run.is_live
    run.leave()  # again does nothing


def test_two_brokers_of_one_run_exclude_each_other(run, monkeypatch):
    monkeypatch.setattr(registry, "LOCK_TIMEOUT", 0.1)
    with pytest.raises(AnchorRegistryError, match="another process has held its lock"):
        Run(run.folder).join()
    assert run.is_live
    run.leave()
    other = Run(run.folder)
    other.join()
    other.leave()


def test_a_broker_waits_for_the_one_that_is_just_leaving(run):
    threading.Timer(0.5, run.leave).start()
    other = Run(run.folder)
    before = time.monotonic()
    other.join()
    assert time.monotonic() - before > 0.3
    other.leave()


# writers


WRITE = """
import sys
from pathlib import Path
from pytest_anchor.registry.journal import Run
run = Run(Path(sys.argv[1]))
for n in range(50):
    run.append("intent", f"{sys.argv[2]}-{n}", owner=sys.argv[2], test="x" * (n * 40), time=n, base_url="", fingerprint="", run_id="", folder_inode=0)
"""


def test_eight_processes_write_at_once(run):
    folder = run.folder
    with ExitStack() as stack:
        for writer in [stack.enter_context(script(WRITE, folder, f"gw{n}")) for n in range(8)]:
            assert writer.wait(30) == 0
    state = run.read()
    assert state.unreadable == 0
    assert set(state.records) == {f"gw{n}-{k}" for n in range(8) for k in range(50)}
    assert all(len(record.test) == int(record.time) * 40 for record in state.records.values())


def test_threads_write_at_once(run):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: intend(run, f"n{n}"), range(100)))
        states = list(pool.map(lambda _: run.read(), range(8)))
    assert len(states[0].records) == 100
    assert states[0].unreadable == 0


def test_a_forked_child_writes_with_locks_of_its_own(tmp_path):
    code = """
import os, sys, threading
from pathlib import Path
from pytest_anchor.registry.journal import Run
run = Run(Path(sys.argv[1]))
run.join()
ready, go = threading.Event(), threading.Event()
def hold():
    with run._guarded():
        ready.set(); go.wait(10)
thread = threading.Thread(target=hold)
thread.start(); ready.wait(10)
child = os.fork()
if child == 0:
    run.append("refused", "child")
    os._exit(0)
go.set(); thread.join(10)
assert os.waitpid(child, 0)[1] == 0
run.append("refused", "parent")
assert set(run.read().records) == {"child", "parent"}, run.state
"""
    with script(code, tmp_path / "reg" / "run") as process:
        assert process.wait(15) == 0


def test_a_writer_that_stopped_is_not_waited_for(run, monkeypatch):
    for module in (registry, folders):
        monkeypatch.setattr(module, "LOCK_TIMEOUT", 0.1)
    waiting = Run(run.folder)
    with run._guarded(), pytest.raises(AnchorRegistryError, match="held its lock for over 0 seconds"):
        intend(waiting, "n1")
    assert not journal(run).exists()
    intend(waiting, "n1")


@pytest.mark.parametrize("room", [0, 30])
def test_what_does_not_fit_on_the_disk_leaves_nothing(tmp_path, room):
    code = """
import os, resource, sys
from pathlib import Path
from pytest_anchor.errors import AnchorRegistryError
from pytest_anchor.registry.journal import Run
run = Run(Path(sys.argv[1]))
run.join()
run.append("refused", "n1")
size = (run.folder / "journal.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    run.append("refused", "n2")
except AnchorRegistryError as error:
    print(error)
assert (run.folder / "journal.jsonl").stat().st_size == size
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
run.append("refused", "n3")
assert list(run.read().records) == ["n1", "n3"] and run.state.unreadable == 0
"""
    with script(code, tmp_path / "reg" / "run", room) as process:
        said = process.communicate(timeout=15)[0]
        assert process.returncode == 0
    assert "No session is created without a record" in said
