import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_anchor import registry
from pytest_anchor.errors import AnchorRegistryError
from pytest_anchor.registry import JOURNAL, Record, Run, State, is_held, wait_for_owners

CHECKOUT = Path(__file__).parent.parent
ERROR = {"status": 500, "code": "E", "message": "m", "remedy": "r", "tries": 4}
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change owners")


def script(code, *arguments):
    """Start Python in a process of its own, with the checkout on its path."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def intent(run, nonce, **changes):
    fields = {"owner": run.owner, "test": "t.py::x", "time": 1.0, "base_url": "http://b", "fingerprint": "f"}
    run.append("intent", nonce, **{**fields, **changes})


def journal(run):
    return run.folder / JOURNAL


# events


def test_the_life_of_a_session(run):
    intent(run, "n1")
    record = run.read().records["n1"]
    assert (record.owner, record.test, record.time, record.base_url, record.fingerprint) == (
        "main",
        "t.py::x",
        1.0,
        "http://b",
        "f",
    )
    assert (record.state, record.unresolved, record.open, record.id) == ("pending", True, False, None)
    run.append("created", "n1", id="abc")
    run.read()
    assert (record.state, record.unresolved, record.open, record.id) == ("open", False, True, "abc")
    run.append("failed", "n1", error=ERROR)
    run.read()
    assert (record.open, record.error) == (True, ERROR)
    run.append("ended", "n1", how="sweep", already=True, note="hm")
    run.read()
    assert (record.state, record.open, record.unresolved, record.error) == ("ended", False, False, None)
    assert (record.how, record.already, record.note) == ("sweep", True, "hm")


def test_a_lost_creation_is_unresolved_until_it_is_found(run):
    intent(run, "n1")
    run.append("lost", "n1", time=9.0, error=ERROR)
    record = run.read().records["n1"]
    assert (record.state, record.unresolved, record.time, record.error) == ("lost", True, 9.0, ERROR)
    run.append("created", "n1", id="abc")
    run.read()
    assert (record.open, record.unresolved, record.error) == (True, False, None)


def test_a_refused_creation_is_settled(run):
    intent(run, "n1")
    run.append("refused", "n1")
    record = run.read().records["n1"]
    assert (record.state, record.open, record.unresolved) == ("refused", False, False)


def test_records_stay_in_the_order_of_their_intents(run):
    for nonce in "cab":
        intent(run, nonce)
    run.append("created", "b", id="x")
    assert list(run.read().records) == ["c", "a", "b"]


def test_taking_an_event_in_twice_changes_nothing():
    events = [
        {"event": "intent", "nonce": "n", "owner": "gw0", "test": "t", "time": 2, "base_url": "", "fingerprint": ""},
        {"event": "created", "nonce": "n", "id": "abc"},
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
    intent(run, "n1", test="ümlaut[\n]")
    lines = journal(run).read_bytes().split(b"\n")
    assert len(lines) == 2
    assert json.loads(lines[0])["test"] == "ümlaut[\n]"
    assert lines[1] == b""


# reading


def test_reading_goes_on_where_it_stopped(run):
    intent(run, "n1")
    state = run.read()
    size = journal(run).stat().st_size
    assert run._offset == size
    journal(run).write_bytes(b"#" * size)  # what was read is not read again
    intent(run, "n2")
    assert run.read() is state
    assert list(state.records) == ["n1", "n2"]
    assert state.unreadable == 0


def test_another_owner_sees_what_was_written(run):
    intent(run, "n1")
    other = Run(run.folder, "gw0")
    assert list(other.read().records) == ["n1"]
    intent(other, "n2")
    assert list(run.read().records) == ["n1", "n2"]
    assert run.state.records["n2"].owner == "gw0"


def test_without_a_journal_there_is_nothing(tmp_path):
    assert Run(tmp_path / "none", "main").read().records == {}


def test_a_journal_that_cannot_be_opened_is_an_error(run):
    journal(run).mkdir()
    with pytest.raises(AnchorRegistryError, match="--anchor-registry DIR"):
        run.read()


def test_a_torn_tail_is_skipped_and_closed_off(run):
    intent(run, "n1")
    with journal(run).open("ab") as file:
        file.write(b'{"event":"created","nonce":"n1","id":"ab')
    assert run.read().records["n1"].state == "pending"
    intent(run, "n2")
    state = run.read()
    assert list(state.records) == ["n1", "n2"]
    assert state.records["n1"].state == "pending"
    assert state.unreadable == 0
    assert list(Run(run.folder, "x").read().records) == ["n1", "n2"]


def test_half_a_line_is_read_once_it_is_whole(run):
    intent(run, "n1")
    whole = journal(run).read_bytes()
    journal(run).write_bytes(whole[:20])
    assert run.read().records == {}
    journal(run).write_bytes(whole)
    assert list(run.read().records) == ["n1"]


GARBAGE = [
    b"garbage",
    b"",
    b"[]",
    b"null",
    b"7",
    b'"text"',
    b"\xff\xfe",
    b"{}",
    b'{"event":"created","id":"x"}',
    b'{"nonce":"y"}',
    b'{"event":"created","nonce":"y"}',
    b'{"event":"lost","nonce":"y"}',
    b'{"event":"failed","nonce":"y","error":7}',
    b'{"event":"failed","nonce":"y","error":null}',
    b'{"event":"nonsense","nonce":"y"}',
    b'{"event":"intent","nonce":"y","time":"noon"}',
    b'{"event":"intent","nonce":"y","time":1' + b"0" * 400 + b"}",
    b'{"event":"intent","nonce":"y"',
    b"[" * 100_000,
]


@pytest.mark.parametrize("line", GARBAGE, ids=lambda line: repr(line[:40]))
def test_a_line_that_is_no_event_is_counted(run, line):
    intent(run, "n1")
    with journal(run).open("ab") as file:
        file.write(line + b"\n")
    intent(run, "n2")
    state = run.read()
    assert state.unreadable == 1
    assert {"n1", "n2"} <= set(state.records)
    run.read()
    assert state.unreadable == 1


# who is alive


def test_an_owner_is_alive_until_it_leaves(run):
    assert run.is_alive("main")
    assert not run.is_alive("gw0")
    run.leave()
    assert not run.is_alive("main")
    run.leave()  # again does nothing


def test_a_lock_file_that_nobody_holds_is_a_dead_owners(run):
    (run.folder / "gw0.owner").touch()
    assert not run.is_alive("gw0")
    assert not is_held(run.folder / "none.owner")


def test_asking_whether_an_owner_lives_does_not_make_it_look_alive(run):
    run.leave()
    asked = [is_held(run.folder / "main.owner") for _ in range(3)]
    assert asked == [False] * 3


def test_two_owners_of_one_name_exclude_each_other(run, monkeypatch):
    monkeypatch.setattr(registry, "LOCK_TIMEOUT", 0.1)
    with pytest.raises(AnchorRegistryError, match="another process has held its lock"):
        Run(run.folder, "main").join()


HOLD = """
import sys, time
from pathlib import Path
from pytest_anchor.registry import Run
run = Run(Path(sys.argv[1]), sys.argv[2])
run.join()
print("joined", flush=True)
time.sleep(60)
"""


def test_a_killed_owner_is_dead_at_once_and_the_waiter_wakes(tmp_path):
    folder = tmp_path / "reg" / "run"
    owners = [script(HOLD, folder, name) for name in ("gw0", "gw1")]
    try:
        for owner in owners:
            assert owner.stdout.readline() == "joined\n"
        run = Run(folder, "main")
        assert run.is_alive("gw0")
        assert run.is_alive("gw1")
        woken: list[float] = []
        waiter = threading.Thread(target=lambda: (wait_for_owners(folder), woken.append(time.monotonic())), daemon=True)
        waiter.start()
        owners[0].send_signal(signal.SIGKILL)
        owners[0].wait(10)
        assert not run.is_alive("gw0")
        assert run.is_alive("gw1")
        assert not woken
        owners[1].send_signal(signal.SIGKILL)
        owners[1].wait(10)
        died = time.monotonic()
        waiter.join(10)
        assert woken[0] - died < 1
        assert not run.is_alive("gw1")
    finally:
        for owner in owners:
            owner.kill()
            owner.wait(10)
            owner.stdout.close()


def test_nobody_to_wait_for(tmp_path):
    wait_for_owners(tmp_path)
    wait_for_owners(tmp_path / "none")


def test_a_name_that_is_taken_while_waiting_is_waited_for_as_well(run):
    done = threading.Event()
    waiter = threading.Thread(target=lambda: (wait_for_owners(run.folder), done.set()), daemon=True)
    waiter.start()
    other = Run(run.folder, "gw0")
    other.join()
    run.leave()
    assert not done.wait(0.1)
    other.leave()
    assert done.wait(10)


# writers


WRITE = """
import sys
from pathlib import Path
from pytest_anchor.registry import Run
run = Run(Path(sys.argv[1]), sys.argv[2])
run.join()
for n in range(50):
    run.append("intent", f"{sys.argv[2]}-{n}", owner=sys.argv[2], test="x" * (n * 40), time=n, base_url="", fingerprint="")
"""


def test_eight_processes_write_at_once(tmp_path):
    folder = tmp_path / "reg" / "run"
    writers = [script(WRITE, folder, f"gw{n}") for n in range(8)]
    for writer in writers:
        assert writer.wait(30) == 0
        writer.stdout.close()
    state = Run(folder, "main").read()
    assert state.unreadable == 0
    assert set(state.records) == {f"gw{n}-{k}" for n in range(8) for k in range(50)}
    assert all(len(record.test) == int(record.time) * 40 for record in state.records.values())


def test_threads_write_at_once(run):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: intent(run, f"n{n}"), range(100)))
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
    with Run(run.folder, "x")._guarded(), pytest.raises(AnchorRegistryError, match="held its lock for over 0 seconds"):
        intent(run, "n1")
    assert not journal(run).exists()
    intent(run, "n1")


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
        intent(run, "n1")
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
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    link = tmp_path / which
    link.parent.mkdir(exist_ok=True, mode=0o700)
    link.symlink_to(tmp_path / "elsewhere")
    assert "it is a link or a file, not a folder" in refused(tmp_path / "reg" / "run")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert mode(tmp_path / "elsewhere") == 0o755


def test_a_link_instead_of_the_journal_is_not_followed(run, tmp_path):
    (tmp_path / "victim").write_text("x")
    journal(run).symlink_to(tmp_path / "victim")
    with pytest.raises(AnchorRegistryError):
        intent(run, "n1")
    assert (tmp_path / "victim").read_text() == "x"


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
    intent(run, "n1")
    run.leave()
    run.remove()
    assert not run.folder.exists()
    assert (run.folder.parent / ".gitignore").exists()
    run.remove()  # again does nothing


def test_what_is_written_after_the_removal_makes_no_new_folder(run):
    intent(run, "n1")
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
