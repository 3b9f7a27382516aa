import errno
import os
import shutil
import socket
import stat
import threading
import time
from pathlib import Path

import pytest
from processes import script
from records import ERROR, INTENT, intend, journal, journal_line, opened

from pytest_anchor.errors import AnchorRegistryError
from pytest_anchor.registry.folders import check_registry, remove_sockets
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.locks import JOURNAL
from pytest_anchor.registry.records import Record
from pytest_anchor.registry.signatures import is_signed
from pytest_anchor.settings import socket_folder, worker_sockets

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change owners")


# the folder


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_private(tmp_path):
    mask = os.umask(0)
    try:
        run = Run(tmp_path / "reg" / "run")
        run.join()
        intend(run, "n1")
    finally:
        os.umask(mask)
    assert mode(tmp_path / "reg") == 0o700
    assert mode(run.folder) == 0o700
    for name in (JOURNAL, "journal.lock", "broker.lock"):
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
    Run(tmp_path / "reg" / "run").join()


def test_a_file_system_without_modes_can_be_used_again_and_again(tmp_path, monkeypatch):
    make = Path.mkdir

    def make_open(path, *args, **kwargs):
        make(path, *args, **kwargs)
        path.chmod(0o777)  # as such a mount shows every folder

    monkeypatch.setattr(Path, "mkdir", make_open)
    for number in range(2):
        run = Run(tmp_path / "reg" / f"run{number}")
        run.join()
        intend(run, "n1")
        run.leave()
    assert mode(tmp_path / "reg") == 0o777
    assert {path.name for path in (tmp_path / "reg").iterdir()} == {".gitignore", "run0", "run1"}


def test_a_file_system_without_locks_is_refused_at_once(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    before = time.monotonic()
    assert "No locks available" in refused(tmp_path / "reg" / "run")
    assert time.monotonic() - before < 5


def test_a_folder_that_was_there_is_left_as_it_is(tmp_path):
    (tmp_path / "reg").mkdir()
    (tmp_path / "reg").chmod(0o755)
    run = Run(tmp_path / "reg" / "run")
    run.join()
    run.leave()
    assert mode(tmp_path / "reg") == 0o755
    assert mode(run.folder) == 0o700
    assert not (tmp_path / "reg" / ".gitignore").exists()


def test_the_usual_folder_is_always_ignored_by_git(tmp_path):
    (tmp_path / ".pytest_anchor").mkdir()
    run = Run(tmp_path / ".pytest_anchor" / "run")
    run.join()
    run.leave()
    assert (tmp_path / ".pytest_anchor" / ".gitignore").exists()


def test_a_gitignore_of_ones_own_is_kept(tmp_path):
    folder = tmp_path / ".pytest_anchor"
    folder.mkdir(mode=0o700)
    (folder / ".gitignore").write_text("mine\n")
    run = Run(folder / "run")
    run.join()
    run.leave()
    assert (folder / ".gitignore").read_text() == "mine\n"


def refused(folder):
    run = Run(folder)
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
        (os.mkfifo, "its journal.jsonl is not a file"),
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
        Run(tmp_path / "reg" / "run").join()


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
        run.append("ended", "n1", ended_by="teardown", already=False, note="")
    except AnchorRegistryError:
        pass
    assert not run.folder.exists()


def test_a_record_starts_out_unresolved():
    record = Record("n")
    assert record.unresolved
    assert not record.open


# a folder that is removed while the run goes on


def reopened(run):
    return Run(run.folder).read().records


def test_a_folder_that_was_removed_is_made_anew_with_what_may_be_running(run):
    for nonce in ("open", "lost", "pending", "over", "refused"):
        intend(run, nonce, owner="gw1", test="t.py::é", ahead=True, retried=1)
    for nonce in ("open", "over"):
        run.append("created", nonce, id=f"id-{nonce}", signature=f"s-{nonce}")
    run.append("lost", "lost", time=9.0, error=ERROR)
    run.append("ended", "over", ended_by="test", already=False)
    run.append("refused", "refused")
    assert run.is_in_place
    shutil.rmtree(run.folder)
    assert not run.is_in_place
    run.restore()
    assert run.is_in_place
    assert run.is_live
    assert run.folder_inode == run.folder.stat().st_ino
    found = reopened(run)
    assert {nonce: record.state for nonce, record in found.items()} == {
        "open": "open",
        "lost": "pending",
        "pending": "pending",
    }
    assert (found["open"].id, found["open"].signature) == ("id-open", "s-open")
    for record in found.values():
        assert (record.owner, record.test, record.ahead, record.retried) == ("gw1", "t.py::é", True, 1)
        assert record.folder_inode == run.folder_inode
    assert {nonce: record.state for nonce, record in run.read().records.items()} == {
        "open": "open",
        "lost": "lost",
        "pending": "pending",
        "over": "ended",
        "refused": "refused",
    }
    assert run.state.unreadable == 0


@pytest.mark.parametrize("what", ["run", "registry"])
def test_what_is_written_after_the_removal_of_a_live_run_is_on_record(run, what):
    intend(run, "n1")
    shutil.rmtree(run.folder if what == "run" else run.folder.parent)
    run.append("created", "n1", id="abc", signature="s")
    intend(run, "n2")
    assert {nonce: record.state for nonce, record in reopened(run).items()} == {"n1": "open", "n2": "pending"}
    assert {record.folder_inode for record in reopened(run).values()} == {run.folder.stat().st_ino}
    assert {nonce: record.state for nonce, record in run.read().records.items()} == {"n1": "open", "n2": "pending"}
    assert run.is_live


def test_a_creation_that_finds_its_folder_removed_is_of_the_new_one(run, tmp_path):
    intend(run, "n1")
    before = run.folder_inode
    run.folder.rename(tmp_path / "kept")  # its number is not given to another folder
    intend(run, "n2", folder_inode=before)
    assert run.folder_inode != before
    assert {record.folder_inode for record in reopened(run).values()} == {run.folder_inode}
    assert {record.folder_inode for record in run.state.records.values()} == {run.folder_inode}


def test_an_intent_is_of_the_folder_that_is_made_anew_meanwhile(run, tmp_path, monkeypatch):
    intend(run, "n1")
    run.folder.rename(tmp_path / "kept")  # its number is not given to another folder
    given = {name: INTENT[name] for name in ("owner", "test", "base_url", "fingerprint", "run_id")}
    add, join = threading.Thread(target=lambda: run.append("intent", "n2", **given)), Run.join

    def join_and_add(run):
        join(run)
        add.start()
        add.join(0.3)

    monkeypatch.setattr(Run, "join", join_and_add)
    began = time.monotonic()
    run.restore()
    add.join(10)
    assert time.monotonic() - began < 5  # neither waits for the other's lock
    records = reopened(run)
    assert [*records] == ["n1", "n2"]
    assert all(run.owns(record) for record in records.values())


def test_records_stay_the_runs_own_while_its_folder_is_made_anew(server, api, run, tmp_path, monkeypatch):
    opened(server, api, run, f"{run.folder.name}-1")
    record = run.known(f"{run.folder.name}-1")
    run.folder.rename(tmp_path / "kept")  # its number is not given to another folder
    answers, join = [], Run.join
    look = threading.Thread(target=lambda: answers.append(is_signed(api, run, record)))

    def join_and_look(run):
        join(run)
        look.start()
        look.join(0.3)

    monkeypatch.setattr(Run, "join", join_and_look)
    run.restore()
    look.join(10)
    assert answers == [True]


def test_a_journal_that_was_removed_alone_hides_nothing_that_is_written_later(run):
    intend(run, "n1")
    journal(run).unlink()
    intend(run, "n2")
    assert run.known("n2").state == "pending"
    assert list(reopened(run)) == ["n2"]


def test_a_folder_that_is_in_place_is_left_as_it_is(run):
    intend(run, "n1")
    before = journal(run).read_bytes()
    run.restore()
    assert journal(run).read_bytes() == before


def test_a_folder_that_was_never_joined_is_not_made_anew(run):
    run.leave()
    shutil.rmtree(run.folder)
    run.restore()
    with pytest.raises(AnchorRegistryError, match="No such file"):
        intend(run, "n1")
    assert not run.folder.exists()


def test_a_registry_that_cannot_be_used_any_more_is_refused(run):
    intend(run, "n1")
    shutil.rmtree(run.folder.parent)
    run.folder.parent.write_text("a file in the way")
    with pytest.raises(AnchorRegistryError, match="not a folder|Not a directory"):
        intend(run, "n2")


def test_what_another_registry_knows_is_taken_over(run):
    theirs = {
        "open": Record("open", owner="gw5", test="t", state="open", id="abc", signature="s", folder_inode=7),
        "lost": Record("lost", owner="gw5", state="lost", folder_inode=7),
        "over": Record("over", owner="gw5", state="ended", id="xyz", ended_by="test", folder_inode=7),
    }
    for record in theirs.values():
        run.add(record)
    assert run.read().records == theirs
    assert {record.folder_inode for record in theirs.values()} == {run.folder_inode}
    assert {nonce: record.state for nonce, record in reopened(run).items()} == {"open": "open", "lost": "pending"}
    assert reopened(run)["open"].id == "abc"


# dead runs


def test_only_one_sweeps_a_dead_run(run):
    one, other = Run(run.folder), Run(run.folder)
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
from pytest_anchor.registry.journal import Run
run = Run(Path(sys.argv[1]))
print(run.claim(), flush=True)
sys.stdin.read()
"""
    with script(code, run.folder) as sweeper:
        assert sweeper.stdout.readline() == "True\n"
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
    copy = Run(shutil.copytree(run.folder, tmp_path / "copy"))
    assert copy.folder_inode != run.folder_inode == Run(run.folder).folder_inode


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


def test_what_a_killed_broker_has_left_for_its_sockets_is_removed(tmp_path: Path):
    mine, served, other, link = (tmp_path / os.urandom(8).hex() for _ in range(4))
    left = [Path(socket_folder(name)) for run in (mine, served, other) for name in (run.name, worker_sockets(run))]
    linked = Path(socket_folder(link.name))
    try:
        for folder in left:
            (folder / "0").mkdir(parents=True, mode=0o700)
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(f"{folder}/0/socket")
        linked.symlink_to(left[4])
        (left[2] / "1").mkdir()
        with socket.socket(socket.AF_UNIX) as living:
            living.bind(f"{left[2]}/1/socket")
            living.listen()
            for run in (mine, served, link, tmp_path / ("long" * 50)):
                remove_sockets(run)
        assert [folder.exists() for folder in left] == [False, False, True, False, True, True]
    finally:
        linked.unlink()
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
