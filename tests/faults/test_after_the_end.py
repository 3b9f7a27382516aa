"""What a run's threads and kills do when the run is over, or its record has been removed."""

from __future__ import annotations

import os
import signal
import time

import pytest
from fault_server import FaultServer
from real_runs import Suite, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

THREADS = """
import threading, time
from pathlib import Path

def test_a(session_anchor_session):
    session_anchor_session()
    def wait():
        try:
            session_anchor_session()
        except Exception:
            pass
    for _ in range(16):
        threading.Thread(target=wait).start()
    Path("ready").touch()
    time.sleep(30)
"""


def test_threads_that_wait_for_a_slot_create_nothing_when_the_run_is_over(suite: Suite, server: FaultServer):
    suite.write(THREADS)
    process = suite.start("--anchor-max-sessions=1", "-W", "ignore", workers=1, reaper=True)
    until((suite.folder / "ready").exists)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    suite.outcome(process)
    suite.wait_for_quiet(30)
    assert not suite.alive
    # The slot that came free may have been given to one of them before the second Ctrl-C.
    assert server.count("POST") <= 3


REMOVES = """
import os, shutil, time
from pathlib import Path

def test_a(anchor_session):
    anchor_session()
    while os.path.exists(".pytest_anchor"):  # the broker may write into it meanwhile
        shutil.rmtree(".pytest_anchor", ignore_errors=True)
    anchor_session()
    Path("ready").touch()
    time.sleep(30)
"""


def test_a_kill_after_the_registry_was_removed_leaves_nothing(suite: Suite):
    suite.write(REMOVES)
    process = suite.start(workers=1, reaper=True)
    until((suite.folder / "ready").exists)
    assert len(suite.alive) == 2
    os.killpg(process.pid, signal.SIGKILL)
    suite.outcome(process)
    until(lambda: not suite.alive)


def test_the_next_run_recovers_what_is_in_a_registry_that_was_made_anew(suite: Suite):
    suite.write(REMOVES)
    process = suite.start(reaper=False)
    until((suite.folder / "ready").exists)
    os.killpg(process.pid, signal.SIGKILL)
    suite.outcome(process)
    suite.wait_for_quiet()
    assert len(suite.alive) == 2
    suite.write("def test_b(): pass\n")
    run = suite.run_here()
    assert "recovered 2 sessions of the run that died" in run.section
    assert not suite.alive


UMASK = """
import os
def test_a(request):
    os.umask(0o777)
    request.getfixturevalue("anchor_session")()
    os.umask(0o022)
"""


def test_a_tests_umask_is_not_the_registrys(suite: Suite):
    suite.write(UMASK)
    for _ in range(2):
        run = suite.run(reaper=True)
        assert (run.status, run.outcomes) == (0, {"passed": 1})
    (suite.registry / "x").mkdir()  # the folder can be entered


LONG = """
import pytest
@pytest.mark.parametrize("text", ["x" * {length}])
def test_a(anchor_session, text):
    anchor_session()
    assert {passes}
"""


@pytest.mark.parametrize(("length", "workers"), [(140_000, 1), (1_500_000, 0)])
def test_a_tests_id_may_be_of_any_length(suite: Suite, length: int, workers: int):
    suite.write(LONG.format(length=length, passes=True))
    run = suite.run("-q", workers=workers, reaper=True)
    assert (run.status, run.outcomes["passed"]) == (0, 1)
    assert "1 session created: 1 at teardown" in run.section


KEY_SET_LATE = """
import os
import pytest

@pytest.fixture(scope="session", autouse=True)
def key():
    os.environ["ANCHORBROWSER_API_KEY"] = "{key}"

def test_a(anchor_session):
    print(anchor_session().cdp_url)
    assert 0
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_key_that_a_fixture_sets_is_used_and_kept_out_of_reports(suite: Suite, server: FaultServer, workers: int):
    from fault_server import KEY
    from real_runs import environment

    suite.write(KEY_SET_LATE.format(key=KEY))
    run = suite.start(workers=workers, env=environment(ANCHORBROWSER_BASE_URL=server.url))
    done = suite.outcome(run)
    assert done.outcomes == {"failed": 1}
    assert "apiKey=***" in done.out
    assert f"apiKey={KEY}" not in done.out
    assert not done.alive


TWO_FOLDERS = """
import pytest

@pytest.fixture(scope="session")
def anchor_session_defaults():
    return {{"session": {{"tags": ["{folder}"]}}}}
"""


def test_a_wide_factory_does_not_serve_other_defaults_in_silence(suite: Suite):
    for folder in ("a", "b"):
        (suite.folder / folder).mkdir()
        suite.write(TWO_FOLDERS.format(folder=folder), f"{folder}/conftest.py")
        suite.write(
            f"def test_{folder}(session_anchor_session):\n    session_anchor_session()\n", f"{folder}/test_{folder}.py"
        )
    run = suite.run_here()
    assert run.outcomes == {"passed": 1, "failed": 1}
    assert "b/test_b.py::test_b has an anchor_session_defaults of its own" in run.out


def test_a_tilde_is_the_home(suite: Suite, server: FaultServer):
    from real_runs import environment

    (suite.folder / "home").mkdir()
    suite.write("import os\ndef test_a(anchor_session):\n    anchor_session()\n    os._exit(0)\n")
    env = environment(**server.env, HOME=str(suite.folder / "home"))
    suite.run("--anchor-registry", "~/registry", env=env)
    assert list((suite.folder / "home" / "registry").glob("*/journal.jsonl"))
    assert not (suite.folder / "~").exists()


THREADS_OF_TWO_TESTS = """
import threading
go = threading.Event()
threads = []

def test_first(anchor_session):
    def later():
        go.wait(20)
        anchor_session()
    threads.append(threading.Thread(target=later))
    threads[0].start()

def test_second(anchor_session):
    go.set()
    threads[0].join()
    anchor_session()
"""


def test_a_thread_of_an_earlier_test_is_that_tests(suite: Suite):
    suite.write(THREADS_OF_TWO_TESTS)
    run = suite.run_here("-v")
    lines = [line for line in run.section.splitlines() if " of test_it.py" in line]
    assert sorted(line.partition(" of ")[2].partition(":: ")[0] for line in lines) == [
        "test_it.py::test_first: by the sweep",
        "test_it.py::test_second: at teardown",
    ]
    assert not run.alive
