import json
import os
import shutil
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from processes import read_line, script
from records import ERROR, NO_IDS, intend

from pytest_anchor import registry
from pytest_anchor.errors import AnchorRegistryError
from pytest_anchor.locks import JOURNAL
from pytest_anchor.registry import MAX_LINE, Record, Run, State, check_registry

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change owners")


def journal(run):
    return run.folder / JOURNAL


INTENT = {
    "event": "intent",
    "nonce": "n",
    "owner": "gw0",
    "test": "t",
    "time": 2,
    "base_url": "",
    "fingerprint": "",
    "run_id": "r",
    "place": 1,
}


def journal_line(base, **changes):
    """An event as a line of the journal; a change to ``None`` leaves the field out."""
    return json.dumps({name: value for name, value in {**base, **changes}.items() if value is not None}).encode()


# events


def test_the_life_of_a_session(run):
    intend(run, "n1", time=1)
    record = run.read().records["n1"]
    told = (record.owner, record.test, record.time, record.base_url, record.fingerprint, record.run_id, record.place)
    assert told == ("main", "t.py::x", 1.0, "http://b", "f", "r1", run.folder.stat().st_ino)
    assert (record.state, record.unresolved, record.open, record.id) == ("pending", True, False, None)
    run.append("created", "n1", id="abc", seal="s")
    run.read()
    assert (record.state, record.unresolved, record.open, record.id) == ("open", False, True, "abc")
    assert record.seal == "s"
    run.append("failed", "n1", error=ERROR)
    run.read()
    assert (record.open, record.error) == (True, ERROR)
    run.append("ended", "n1", how="sweep", already=True, note="hm")
    run.read()
    assert (record.state, record.open, record.unresolved, record.error) == ("ended", False, False, None)
    assert (record.how, record.already, record.note) == ("sweep", True, "hm")


def test_what_is_over_stays_so_though_somebody_finds_it_later(run):
    run.append("created", "n1", id="abc", seal="s")
    run.append("ended", "n1", how="sweep", already=False)
    run.append("created", "n1", id="abc", seal="s")
    assert run.read().records["n1"].state == "ended"


def test_what_ctrl_c_interrupts_is_read_again(run, monkeypatch):
    def interrupt(_state, _line):
        raise KeyboardInterrupt

    intend(run, "n1")
    with monkeypatch.context() as patch:
        patch.setattr(State, "apply", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.read()
    assert list(run.read().records) == ["n1"]


def test_a_lost_creation_is_unresolved_until_it_is_found(run):
    intend(run, "n1")
    run.append("lost", "n1", time=9.0, error=ERROR)
    record = run.read().records["n1"]
    assert (record.state, record.unresolved, record.time, record.error) == ("lost", True, 9.0, ERROR)
    run.append("created", "n1", id="abc", seal="s")
    run.read()
    assert (record.open, record.unresolved, record.error) == (True, False, None)


def test_a_refused_creation_is_settled(run):
    intend(run, "n1")
    run.append("refused", "n1")
    record = run.read().records["n1"]
    assert (record.state, record.open, record.unresolved) == ("refused", False, False)


def test_records_stay_in_the_order_of_their_intents(run):
    for nonce in "cab":
        intend(run, nonce)
    run.append("created", "b", id="x", seal="s")
    assert list(run.read().records) == ["c", "a", "b"]


def test_taking_an_event_in_twice_changes_nothing():
    events = [
        INTENT,
        {"event": "created", "nonce": "n", "id": "abc", "seal": "s"},
        {"event": "ended", "nonce": "n", "how": "test", "already": False},
    ]
    state = State()
    for event in events:
        state.apply(event)
        once = dict(vars(state.records["n"]))
        state.apply(event)
        assert vars(state.records["n"]) == once
    assert len(state.records) == 1


def test_the_journal_is_json_lines(run):
    intend(run, "n1", test="ümlaut[\n]")
    lines = journal(run).read_bytes().split(b"\n")
    assert len(lines) == 2
    assert json.loads(lines[0])["test"] == "ümlaut[\n]"
    assert lines[1] == b""


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


def test_another_owner_sees_what_was_written(run):
    intend(run, "n1")
    other = Run(run.folder, "gw0")
    assert list(other.read().records) == ["n1"]
    intend(other, "n2")
    assert list(run.read().records) == ["n1", "n2"]
    assert run.state.records["n2"].owner == "gw0"


def test_without_a_journal_there_is_nothing(tmp_path):
    assert Run(tmp_path / "none", "main").read().records == {}


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
    assert list(Run(run.folder, "x").read().records) == ["n1", "n2"]


def test_half_a_line_is_read_once_it_is_whole(run):
    intend(run, "n1")
    whole = journal(run).read_bytes()
    journal(run).write_bytes(whole[:20])
    assert run.read().records == {}
    journal(run).write_bytes(whole)
    assert list(run.read().records) == ["n1"]


CREATED = {"event": "created", "nonce": "y", "id": "abc", "seal": "s"}
LOST = {"event": "lost", "nonce": "y", "time": 1, "error": ERROR}
FAILED = {"event": "failed", "nonce": "y", "error": ERROR}
ENDED = {"event": "ended", "nonce": "y", "how": "test", "already": False}


@pytest.mark.parametrize("line", [INTENT, CREATED, LOST, FAILED, ENDED], ids=lambda line: line["event"])
def test_what_the_lines_below_are_made_of_is_an_event(run, line):
    journal(run).write_bytes(journal_line(line) + b"\n")
    assert run.read().unreadable == 0
    assert list(run.state.records) == [line["nonce"]]


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
    journal_line(CREATED, seal=None),
    *(journal_line(CREATED, seal=one) for one in ["é", "\ud800", 7, ["s"], {}]),
    journal_line(CREATED, event="nonsense"),
    journal_line(CREATED, event=["created"]),
    journal_line(LOST, error=7),
    journal_line(LOST, time=None),
    journal_line(FAILED, error=None),
    journal_line(FAILED, error={**ERROR, "tries": "many"}),
    journal_line(FAILED, error={"status": 500}),
    journal_line(ENDED, how=None),
    *(journal_line(INTENT, **{name: None}) for name in INTENT),
    journal_line(INTENT, time="noon"),
    journal_line(INTENT, time=10**400),
    journal_line(INTENT, place="here"),
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
    assert first < 20
    assert run.read().unreadable == 0
    assert time.monotonic() - before - first < first / 2, "what is read already is read again"


# who is alive


def test_an_owner_is_alive_until_it_leaves(run):
    assert run.is_alive("main")
    assert not run.is_alive("gw0")
    run.leave()
    assert not run.is_alive("main")
    run.leave()  # again does nothing


def test_two_owners_of_one_name_exclude_each_other(run, monkeypatch):
    monkeypatch.setattr(registry, "LOCK_TIMEOUT", 0.1)
    with pytest.raises(AnchorRegistryError, match="another process has held its lock"):
        Run(run.folder, "main").join()


# writers


WRITE = """
import sys
from pathlib import Path
from pytest_anchor.registry import Run
run = Run(Path(sys.argv[1]), sys.argv[2])
run.join()
for n in range(50):
    run.append("intent", f"{sys.argv[2]}-{n}", owner=sys.argv[2], test="x" * (n * 40), time=n, base_url="", fingerprint="", run_id="", place=0)
"""


def test_eight_processes_write_at_once(tmp_path):
    folder = tmp_path / "reg" / "run"
    with ExitStack() as stack:
        for writer in [stack.enter_context(script(WRITE, folder, f"gw{n}")) for n in range(8)]:
            assert writer.wait(30) == 0
    state = Run(folder, "main").read()
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
from pytest_anchor.registry import Run
run = Run(Path(sys.argv[1]), "main")
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
    monkeypatch.setattr(registry, "LOCK_TIMEOUT", 0.1)
    waiting = Run(run.folder, "x")
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
from pytest_anchor.registry import Run
run = Run(Path(sys.argv[1]), "main")
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


# the folder


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_private(tmp_path):
    mask = os.umask(0)
    try:
        run = Run(tmp_path / "reg" / "run", "main")
        run.join()
        intend(run, "n1")
    finally:
        os.umask(mask)
    assert mode(tmp_path / "reg") == 0o700
    assert mode(run.folder) == 0o700
    for name in (JOURNAL, "journal.lock", "main.owner"):
        assert mode(run.folder / name) == 0o600
    assert (tmp_path / "reg" / ".gitignore").read_text().endswith("\n*\n")
    assert not (run.folder / ".gitignore").exists()
    run.leave()


@pytest.mark.parametrize("which", ["reg", "reg/run"])
@pytest.mark.parametrize("bits", [0o770, 0o707])
def test_a_folder_that_others_may_write_in_is_refused(tmp_path, which, bits):
    (tmp_path / "reg" / "run").mkdir(parents=True)
    (tmp_path / which).chmod(bits)
    assert "other users may write in it" in refused(tmp_path / "reg" / "run")
    (tmp_path / which).chmod(bits | stat.S_ISVTX)
    Run(tmp_path / "reg" / "run", "main").join()


def test_a_folder_that_was_there_is_left_as_it_is(tmp_path):
    (tmp_path / "reg").mkdir()
    (tmp_path / "reg").chmod(0o755)
    run = Run(tmp_path / "reg" / "run", "main")
    run.join()
    run.leave()
    assert mode(tmp_path / "reg") == 0o755
    assert mode(run.folder) == 0o700
    assert not (tmp_path / "reg" / ".gitignore").exists()


def test_the_usual_folder_is_always_ignored_by_git(tmp_path):
    (tmp_path / ".pytest_anchor").mkdir()
    run = Run(tmp_path / ".pytest_anchor" / "run", "main")
    run.join()
    run.leave()
    assert (tmp_path / ".pytest_anchor" / ".gitignore").exists()


def test_a_gitignore_of_ones_own_is_kept(tmp_path):
    folder = tmp_path / ".pytest_anchor"
    folder.mkdir(mode=0o700)
    (folder / ".gitignore").write_text("mine\n")
    run = Run(folder / "run", "main")
    run.join()
    run.leave()
    assert (folder / ".gitignore").read_text() == "mine\n"


def refused(folder):
    run = Run(folder, "main")
    with pytest.raises(AnchorRegistryError) as caught:
        run.join()
    assert "--anchor-registry DIR" in str(caught.value)
    assert "No session is created without a record" in str(caught.value)
    return str(caught.value)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "reg").write_text("x")
    assert "it is a link or a file, not a folder" in refused(tmp_path / "reg" / "run")
    assert "Not a directory" in refused(tmp_path / "reg" / "deeper" / "run")


@pytest.mark.parametrize("which", ["reg", "reg/run"])
def test_a_link_is_not_followed(tmp_path, which):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere").chmod(0o755)  # whatever the umask
    link = tmp_path / which
    link.parent.mkdir(exist_ok=True, mode=0o700)
    link.symlink_to(tmp_path / "elsewhere")
    assert "it is a link or a file, not a folder" in refused(tmp_path / "reg" / "run")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert mode(tmp_path / "elsewhere") == 0o755


def put_a_link(path):
    path.symlink_to(path.parent.parent.parent / "victim")


def put_somebody_elses_file(path):
    path.touch()
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize(
    ("put", "why"),
    [
        (put_a_link, "Too many levels of symbolic links"),
        (os.mkfifo, "its journal.jsonl is no file"),
        (os.mkdir, "directory"),
        pytest.param(put_somebody_elses_file, "belongs to user 65534, not to 0", marks=root_only),
    ],
    ids=["link", "pipe", "folder", "stranger"],
)
def test_what_is_no_journal_is_neither_read_nor_written(run, tmp_path, put, why):
    victim = tmp_path / "victim"
    victim.write_bytes(journal_line(INTENT) + b"\n")
    before = victim.read_bytes()
    put(journal(run))
    for use in (run.read, lambda: intend(run, "n1")):
        with pytest.raises(AnchorRegistryError) as caught:
            use()
        assert "cannot be used" in str(caught.value)
        assert why in str(caught.value) or "No such device" in str(caught.value)
    assert run.state.records == {}
    assert victim.read_bytes() == before


def test_a_link_instead_of_a_lock_is_not_followed(tmp_path):
    folder = tmp_path / "reg" / "run"
    folder.mkdir(parents=True)
    (folder / "journal.lock").symlink_to(tmp_path / "victim")
    assert "symbolic" in refused(folder)
    assert not (tmp_path / "victim").exists()


@root_only
@pytest.mark.parametrize("which", ["reg", "reg/run"])
def test_somebody_elses_folder_is_refused(tmp_path, which):
    (tmp_path / "reg" / "run").mkdir(parents=True)
    os.chown(tmp_path / which, 65534, 65534)
    assert "it belongs to user 65534, not to 0" in refused(tmp_path / "reg" / "run")


def test_a_folder_that_cannot_be_made():
    assert refused(Path("/proc/nowhere/run"))


def test_a_lock_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "reg" / "run" / "journal.lock").mkdir(parents=True)
    with pytest.raises(AnchorRegistryError):
        Run(tmp_path / "reg" / "run", "main").join()


def test_removing_takes_the_runs_folder_only(run):
    intend(run, "n1")
    run.leave()
    run.remove()
    assert not run.folder.exists()
    assert (run.folder.parent / ".gitignore").exists()
    run.remove()  # again does nothing


def test_what_is_written_after_the_removal_makes_no_new_folder(run):
    intend(run, "n1")
    run.leave()
    run.remove()
    try:
        run.append("ended", "n1", how="teardown", already=False, note="")
    except AnchorRegistryError:
        pass
    assert not run.folder.exists()


def test_a_record_starts_out_unresolved():
    record = Record("n")
    assert record.unresolved
    assert not record.open


# dead runs


def test_only_one_sweeps_a_dead_run(run):
    one, other = Run(run.folder, "recovery"), Run(run.folder, "recovery")
    assert one.claim()
    assert not other.claim()
    one.release()
    one.release()  # again does nothing
    assert other.claim()
    other.release()


def test_a_killed_sweepers_claim_is_free(run):
    code = """
import sys
from pathlib import Path
from pytest_anchor.registry import Run
run = Run(Path(sys.argv[1]), "reaper")
print(run.claim(), flush=True)
sys.stdin.read()
"""
    with script(code, run.folder) as sweeper:
        assert read_line(sweeper) == "True\n"
        assert not run.claim()
        sweeper.kill()
        sweeper.wait(10)
    assert run.claim()
    run.release()


def test_a_folder_that_is_gone_cannot_be_claimed(run):
    run.leave()
    run.remove()
    assert not run.claim()
    assert not run.folder.exists()


def test_a_run_died_when_its_journal_was_last_written_before_it_was_claimed(run):
    intend(run, "n1")
    os.utime(journal(run), (1000, 1000))
    for _ in range(2):  # what a sweep writes does not count
        assert run.claim()
        assert run.died == 1000
        run.release()
        run.append("refused", "n1")


def test_a_copy_of_a_run_is_in_another_place(run, tmp_path):
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"), "main")
    assert copy.place != run.place == Run(run.folder, "gw0").place


def test_a_registry_is_checked_before_it_is_read(tmp_path):
    assert not check_registry(tmp_path / "none")
    (tmp_path / "reg").mkdir(mode=0o700)
    assert check_registry(tmp_path / "reg")
    (tmp_path / "reg").chmod(0o777)
    with pytest.raises(AnchorRegistryError, match="other users may write in it"):
        check_registry(tmp_path / "reg")
    (tmp_path / "link").symlink_to(tmp_path / "reg")
    with pytest.raises(AnchorRegistryError, match="it is a link"):
        check_registry(tmp_path / "link")
