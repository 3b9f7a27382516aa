"""Ends of a run beside its usual ones: hooks that fail, creations that come too late, processes that go on."""

from __future__ import annotations

import time

import fault_server as faults
import pytest
from real_runs import Suite, environment, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]


ONE = "def test_a(session_anchor_session):\n    session_anchor_session()\n"


# A run that has an owner again.

CRASHES = """
import os, threading, time
from pathlib import Path

def test_dies(anchor_session):
    anchor_session()
    Path("creating").touch()
    threading.Timer(0.3, os._exit, [3]).start()
    anchor_session()

def test_lives(anchor_session):
    mine = anchor_session()
    Path("mine").write_text(mine.id)
    while not Path("go").exists():
        time.sleep(0.02)
"""


def test_a_crashed_workers_sessions_are_ended_and_those_of_the_one_that_replaces_it_are_not(suite: Suite):
    suite.server.fail("POST", faults.slow(0), faults.slow(1.5))
    suite.write(CRASHES)
    process = suite.start(workers=1, reaper=True)
    mine = until(lambda: (suite.folder / "mine").exists() and (suite.folder / "mine").read_text(), 30)
    until(lambda: suite.alive == [mine], 30)  # what was lost as the worker died is found, and ended
    assert suite.watched
    (suite.folder / "go").touch()
    run = suite.finish(process)
    assert run.outcomes == {"failed": 1, "passed": 1}
    assert "LEAKED" not in run.section
    suite.wait_for_quiet(200)
    suite.assert_settled()


SOON_OVER = """
import time
from pathlib import Path

def test_goes_on():
    while not Path("go").exists():
        time.sleep(0.02)

def test_is_soon_over(anchor_session):
    anchor_session()
"""


def test_what_a_worker_could_not_end_is_ended_while_the_run_goes_on(suite: Suite):
    suite.server.fail_always("DELETE", faults.status(500))
    suite.write("from pathlib import Path\ndef pytest_testnodedown(): Path('down').touch()\n", "conftest.py")
    suite.write(SOON_OVER)
    process = suite.start("--dist=load", "--maxschedchunk=1", workers=2)
    until((suite.folder / "down").exists, 30)
    assert suite.alive
    suite.server.fail_always("DELETE", None)
    until(lambda: not suite.alive, 30)
    (suite.folder / "go").touch()
    run = suite.finish(process)
    assert run.status == 0
    assert "1 by the sweep" in run.section
    suite.assert_settled()


CRASH = "import os, pytest\n@pytest.mark.parametrize('n', range(3))\ndef test_a(anchor_session, n): anchor_session(), os._exit(3)\n"


def test_what_is_being_done_about_crashed_workers_holds_the_end_up_once_and_not_for_long(suite: Suite):
    suite.server.fail_always("DELETE", faults.silent)
    suite.write(CRASH)
    start = time.monotonic()
    run = suite.run("--anchor-sweep-timeout=4", workers=1)
    assert time.monotonic() - start < 40
    assert run.outcomes == {"failed": 3}
    assert "3 sessions created: 3 leaked" in run.section


NO_THREAD = """
import threading
start = threading.Thread.start
def refuse(self):
    if self.name.startswith("pytest-anchor"): raise RuntimeError("can't start new thread")
    start(self)
threading.Thread.start = refuse
"""


def test_where_no_thread_can_be_started_a_failed_end_holds_nobody(suite: Suite):
    suite.server.cap = 5
    suite.server.fail_always("DELETE", faults.status(500))
    suite.write(NO_THREAD, "conftest.py")
    suite.write(ONE)
    run = suite.run("--anchor-sweep-timeout=1")
    assert (run.status, run.outcomes) == (1, {"passed": 1})
    assert "1 session created: 1 leaked" in run.section


TRIES = 4  # of one end

REMOVES_IT = """
import os, shutil, time
from pathlib import Path

def test_dies(anchor_session):
    anchor_session()
    os._exit(3)

def test_removes_it():
    while not Path("remove").exists():
        time.sleep(0.02)
    os.rename(".pytest_anchor", "gone")  # at once, as the broker may just write there
    shutil.rmtree("gone")
    Path("removed").touch()
    while not Path("go").exists():
        time.sleep(0.02)
"""


def test_what_a_crashed_worker_left_is_ended_though_the_record_is_removed(suite: Suite):
    suite.server.fail_always("DELETE", faults.status(500))
    suite.write(REMOVES_IT)
    process = suite.start(workers=1)
    until(lambda: suite.server.count("DELETE"), 30)
    (suite.folder / "remove").touch()
    until((suite.folder / "removed").exists, 30)
    tried = suite.server.count("DELETE")
    until(lambda: suite.server.count("DELETE") > tried + TRIES, 30)  # another round
    suite.server.fail_always("DELETE", None)
    until(lambda: not suite.alive, 30)
    (suite.folder / "go").touch()
    assert suite.finish(process).outcomes == {"failed": 1, "passed": 1}


LOST = """
import pytest
from pytest_anchor import AnchorLostCreateError

def test_a(anchor_session):
    with pytest.raises(AnchorLostCreateError):
        anchor_session()
"""


@pytest.mark.parametrize(("reaper", "workers", "status"), [(True, 1, 0), (False, 0, 1)])
def test_what_was_lost_and_never_seen_fails_the_run_where_nobody_goes_on_looking(
    suite: Suite, workers: int, *, reaper: bool, status: int
):
    suite.server.fail("POST", faults.status(500))
    suite.write(LOST)
    run = suite.run_here("--anchor-sweep-timeout=3", "--anchor-create-retries=0", workers=workers, reaper=reaper)
    assert (run.status, run.outcomes) == (status, {"passed": 1})
    assert "0 sessions created: 1 unresolved" in run.section
    assert ("the reaper goes on trying" in run.section) == reaper
    assert run.recorded


def test_what_an_interrupted_worker_left_is_ended_once(suite: Suite):
    suite.server.fail("DELETE", *[faults.status(500)] * 5)  # its teardown's, and one more
    suite.write(
        "import os, signal\ndef test_a(anchor_session): anchor_session(), os.kill(os.getpid(), signal.SIGINT)\n"
    )
    run = suite.run(workers=1)
    assert run.status == 2
    assert "1 session created: 1 by the sweep" in run.section
    assert suite.server.count("DELETE") == 6


# Creations that come too late.

LATE = {
    "a hook's wrapper": """
import pytest
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish():
    result = yield
    late()
    return result
""",
    "pytest_unconfigure": "def pytest_unconfigure(): late()\n",
    "atexit": "import atexit\natexit.register(lambda: late())\n",
}


@pytest.mark.parametrize("when", LATE)
@pytest.mark.parametrize("sooner", [True, False])
def test_nothing_is_created_once_the_last_sweep_has_begun(suite: Suite, when: str, *, sooner: bool):
    late = "KEPT = []\ndef late():\n    try: KEPT[0]()\n    except Exception as error: print(f'REFUSED: {error}')\n"
    suite.write(late + LATE[when], "conftest.py")
    body = "session_anchor_session()" if sooner else "pass"
    suite.write(
        f"from conftest import KEPT\ndef test_a(session_anchor_session):\n    KEPT.append(session_anchor_session)\n    {body}\n"
    )
    # At exit is when an interpreter of its own ends.
    run = suite.run("-s", env=environment(**suite.server.env)) if when == "atexit" else suite.run_here("-s")
    assert "REFUSED: no session was created for test_it.py::test_a: the run is over" in run.out
    assert suite.server.count("POST") == sooner
    assert not suite.alive


GOES_ON = """
import threading, time

def test_a(session_anchor_session):
    def go_on():
        while True:
            session_anchor_session().end()
    session_anchor_session()
    threading.Thread(target=go_on, daemon=True).start()
    time.sleep(0.3)
"""


@pytest.mark.filterwarnings("ignore")
def test_a_thread_that_goes_on_creating_leaves_nothing(suite: Suite):
    suite.write(GOES_ON)
    for _ in range(2):
        suite.run("-W", "ignore", reaper=True)
        suite.wait_for_quiet(200)
        assert not suite.alive


# Hooks and fixtures that fail at the end.


@pytest.mark.parametrize("failing", ["raise RuntimeError('mine')", "raise SystemExit(0)", "pytest.exit('done', 0)"])
@pytest.mark.parametrize("ends", [True, False], ids=["ends", "500"])
def test_a_hook_that_fails_skips_no_sweep(suite: Suite, failing: str, *, ends: bool):
    suite.write(f"import pytest\ndef pytest_sessionfinish():\n    {failing}\n", "conftest.py")
    suite.write(ONE)
    faulty = faults.status(500)
    suite.server.fail_always("DELETE", faults.once_each(faulty) if ends else faulty)
    # pytester has no answer to a SystemExit.
    run = (suite.run if "SystemExit" in failing else suite.run_here)("--anchor-sweep-timeout=1")
    if ends:
        assert not suite.alive
        assert not run.recorded
    else:
        assert run.status != 0
        assert "LEAKED" in run.out + run.err


RAISES = """
import os, signal, pytest

@pytest.fixture(scope="session")
def page(session_anchor_session):
    yield session_anchor_session()
    raise RuntimeError("Target closed")

def test_a(page):
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_fixture_that_fails_after_ctrl_c_skips_no_sweep(suite: Suite):
    suite.write(RAISES)
    suite.server.fail("DELETE", *[faults.status(500)] * 5)
    run = suite.run()
    assert run.status != 0
    assert not suite.alive
    assert not run.recorded


# A record that is removed in the middle of the run.

REMOVES = """
import os, shutil, signal
def test_a(session_anchor_session):
    session_anchor_session()
    shutil.rmtree(".pytest_anchor")
    {then}
"""


def test_a_removed_record_hides_no_leak(suite: Suite):
    suite.write(REMOVES.format(then="pass"))
    suite.server.fail_always("DELETE", faults.status(500))
    run = suite.run_here("--anchor-sweep-timeout=1", workers=1)
    assert run.status == 1
    assert "1 session created: 1 leaked" in run.section
    suite.wait_for_quiet()  # as long as its broker lives, so does the run
    suite.server.fail_always("DELETE", None)
    suite.write("def test_b(): pass\n")
    run = suite.run_here()
    assert "recovered 1 session of the run that died" in run.section
    assert not suite.alive


def test_sigterm_ends_a_run_whose_record_is_removed_as_any_other(suite: Suite):
    suite.write(REMOVES.format(then="os.kill(os.getpid(), signal.SIGTERM)"))
    run = suite.run()
    assert run.status == 2
    assert not suite.alive


# A terminal that nobody reads, an import that was interrupted, a child that goes on.


def test_an_output_that_is_closed_stops_no_sweep(suite: Suite):
    suite.write("def test_a(session_anchor_session):\n    for _ in range(40): session_anchor_session()\n")
    suite.server.fail_always("DELETE", faults.slow(1.0))
    process = suite.start("--anchor-sweep-at-once=4", workers=1)
    assert process.stdout is not None
    until(lambda: suite.server.count("DELETE"))
    process.stdout.close()
    process.wait(60)
    suite.kill_leftovers()
    assert not suite.alive


INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "pytest_anchor.session":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""


def test_ctrl_c_in_the_imports_of_the_first_creation(suite: Suite):
    suite.write(INTERRUPTED, "conftest.py")
    suite.write(ONE)
    run = suite.run()
    assert run.status == 2
    assert "Traceback" not in run.out + run.err
    assert not suite.alive


FORKS = """
import os, time
def test_a(anchor_session):
    mine = anchor_session()
    if (child := os.fork()) == 0:
        assert False, "and on it goes, in the child"
    os.waitpid(child, 0)
    open("ended", "w").write(str(mine.id))
    while not os.path.exists("go"): time.sleep(0.01)
"""


def test_a_forked_child_that_goes_on_ends_nothing_of_its_parents(suite: Suite):
    suite.write(FORKS)
    process = suite.start("-W", "ignore::DeprecationWarning")
    until((suite.folder / "ended").exists, 30)
    assert len(suite.alive) == 1
    assert not suite.server.count("DELETE")
    (suite.folder / "go").touch()
    suite.outcome(process)
    assert not suite.alive
    assert not suite.runs
