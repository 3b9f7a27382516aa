"""Workers that do not see the controller's disk: another folder, another user, reached over a socket."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import fault_server as faults
import pytest
from ports import unused_port
from processes import PATIENCE, read_line
from real_runs import Suite, environment, remove

pytestmark = pytest.mark.slow

NOBODY = 65534


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    # Not tmp_path: only its owner may enter that.
    path = Path(tempfile.mkdtemp(prefix="pytest-anchor-elsewhere-"))
    path.chmod(0o777)
    yield path
    remove(path)


@pytest.fixture
def gateway(suite: Suite, elsewhere: Path, until: Callable[[Callable[[], object]], None]) -> Iterator[str]:
    """An execnet socket server in another folder, as another user where this one may become one."""
    address = f"127.0.0.1:{unused_port()}"
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 and _all_may_read() else {}
    process = subprocess.Popen(
        [sys.executable, "-m", "execnet.script.socketserver", address],
        cwd=elsewhere,
        # Unbuffered, because it does not flush the line that is waited for.
        env=environment(**suite.server.env, HOME=str(elsewhere), PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **user,
    )
    try:
        assert "Accept loop" in read_line(process)
        yield address
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


@cache
def _all_may_read() -> bool:
    """Whether another user can run this Python and import this package."""
    command = [sys.executable, "-c", "import pytest_anchor, xdist"]
    try:
        return not subprocess.run(
            command, env=environment(), user=NOBODY, group=NOBODY, capture_output=True, timeout=PATIENCE, check=False
        ).returncode
    except OSError:
        return False


def start(suite: Suite, elsewhere: Path, gateway: str, test: str) -> subprocess.Popen[str]:
    suite.write(test)
    for name in ("test_it.py", "pytest.ini"):
        shutil.copy(suite.folder / name, elsewhere)
    tx = f"--tx=socket={gateway}//chdir={elsewhere}"
    # What xdist would copy is there already: no arguments, no rsync.
    return suite.start(
        "-p", "xdist", "--dist=load", tx, "--max-worker-restart=0", "--anchor-sweep-timeout=3", reaper=True
    )


def records(folder: Path) -> list[Path]:
    return list(folder.glob(".pytest_anchor/*/journal.jsonl"))


def assert_two_registries(suite: Suite, elsewhere: Path) -> None:
    assert (elsewhere / ".pytest_anchor").is_dir()
    assert suite.registry.is_dir()
    assert not records(suite.folder)


BOTH = """
from pathlib import Path

def test_a(anchor_session):
    anchor_session()
    assert list(Path(".pytest_anchor").glob("*/gw0.*.pid")), "this worker's registry is not here"
"""


def test_its_sessions_are_counted_and_nothing_stays(
    suite: Suite, elsewhere: Path, gateway: str, until: Callable[[Callable[[], object]], None]
):
    run = suite.finish(start(suite, elsewhere, gateway, BOTH))
    assert (run.status, run.outcomes) == (0, {"passed": 1})
    assert "1 session created: 1 at teardown\n" in run.section
    assert not run.alive
    until(lambda: not records(elsewhere))
    assert_two_registries(suite, elsewhere)


def test_what_its_teardown_could_not_end_the_controller_ends(
    suite: Suite, elsewhere: Path, gateway: str, until: Callable[[Callable[[], object]], None]
):
    suite.server.fail("DELETE", *[faults.status(500)] * 4)
    run = suite.finish(start(suite, elsewhere, gateway, BOTH))
    assert run.status == 0
    # Its own reaper is at it at the same time.
    assert re.search("1 session created: 1 (by the sweep|already over)\n", run.section)
    assert not run.alive
    until(lambda: not records(elsewhere))
    assert_two_registries(suite, elsewhere)


def test_what_nobody_can_end_is_on_the_controllers_record(suite: Suite, elsewhere: Path, gateway: str):
    suite.server.fail_always("DELETE", faults.status(403))
    run = suite.finish(start(suite, elsewhere, gateway, BOTH))
    assert run.status == 1
    (leaked,) = run.alive
    assert f"LEAKED {leaked} of test_it.py::test_a [gw0]" in run.section
    (journal,) = records(suite.folder)
    assert leaked in journal.read_text()


CRASHES = """
import os, signal
from contextlib import suppress
from pathlib import Path

def kill_reaper():
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it is gone
            line = (process / "cmdline").read_bytes()
            if b"pytest_anchor.broker" in line and os.getcwd().encode() in line:
                os.kill(int(process.name), signal.SIGKILL)

def test_a(anchor_session):
    anchor_session()
    kill_reaper()
    os._exit(3)
"""


@pytest.mark.parametrize("watched", [True, False], ids=["and-its-reaper", "alone"])
def test_what_a_crashed_one_left_is_found_by_its_tag(
    suite: Suite, elsewhere: Path, gateway: str, until: Callable[[Callable[[], object]], None], watched: bool
):
    crash = CRASHES.replace("    kill_reaper()\n", "") if watched else CRASHES
    run = suite.finish(start(suite, elsewhere, gateway, crash))
    assert run.status == 1
    assert not run.alive
    assert not records(suite.folder)
    if not watched:
        assert "1 session created: 1 by the sweep\n" in run.section


def test_its_reaper_ends_what_a_killed_run_left(
    suite: Suite, elsewhere: Path, gateway: str, until: Callable[[Callable[[], object]], None]
):
    # Both die: the controller, and the worker, which would otherwise see to its own.
    test = "import os, pathlib, time\ndef test_a(anchor_session):\n    anchor_session()\n    pathlib.Path('pid').write_text(str(os.getpid()))\n    time.sleep(30)\n"
    process = start(suite, elsewhere, gateway, test)
    until(lambda: (elsewhere / "pid").exists() and (elsewhere / "pid").read_text())
    assert len(suite.alive) == 1
    os.killpg(process.pid, signal.SIGKILL)
    os.kill(int((elsewhere / "pid").read_text()), signal.SIGKILL)
    run = suite.finish(process)
    until(lambda: not suite.alive)
    until(lambda: not records(elsewhere))
    assert run.status == -signal.SIGKILL
