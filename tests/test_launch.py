"""`--anchor-local`: the backend that a run starts for itself, and that goes when the run goes."""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import ForkedPytest
from processes import PATIENCE
from real_runs import environment, remove

pytestmark = pytest.mark.slow

SUITE = """
import urllib.request, time, pathlib

def test_a(anchor_session):
    one, two = anchor_session(browser={"headless": {"active": True}}), anchor_session()
    assert one.cdp_url.startswith("ws://127.0.0.1:") and one.id != two.id

def test_b(anchor_session):
    anchor_session()
    pathlib.Path("ready").touch()
    while pathlib.Path("wait").exists():
        time.sleep(0.02)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: Chromium puts a socket below TMPDIR, whose path may have 108 characters.
    path = Path(tempfile.mkdtemp(prefix="pal-", dir="/tmp"))
    yield path
    remove(path)


def start(folder: Path, *args: str, suite: str = SUITE) -> ForkedPytest:
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(suite)
    (folder / "tmp").mkdir()
    own = ["-p", "pytest_anchor", "-W", "error", "--anchor-local"]
    return ForkedPytest([*own, *args], folder, environment(TMPDIR=str(folder / "tmp")))


def processes_of(folder: Path) -> list[str]:
    """Command lines of the living processes that name the folder: the backend, its shells, every Chromium."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def gone(folder: Path, within: float) -> bool:
    deadline = time.monotonic() + within
    while processes_of(folder) or any((folder / "tmp").glob("pytest-anchor-local-*/*")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("args", [(), ("-p", "xdist", "-n", "2")], ids=["one", "workers"])
def test_a_run_serves_itself(folder: Path, args: tuple[str, ...]) -> None:
    process = start(folder, *args)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "3 sessions created: 3 at teardown" in out
    assert gone(folder, 3.0), (processes_of(folder), list((folder / "tmp").rglob("*")))
    assert [entry.name for entry in (folder / ".pytest_anchor").iterdir()] == [".gitignore"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_a_killed_run_leaves_no_chromium(folder: Path) -> None:
    (folder / "wait").touch()
    process = start(folder)
    deadline = time.monotonic() + 30
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate(timeout=PATIENCE)[0]
        time.sleep(0.02)
    assert processes_of(folder)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert gone(folder, 3.0), (processes_of(folder), list((folder / "tmp").rglob("*")))


def test_what_is_kept_outlives_the_run(folder: Path) -> None:
    suite = "def test_it(anchor_session): anchor_session(); assert False"
    process = start(folder, "--anchor-keep=failed", suite=suite)
    out, _ = process.communicate(timeout=60)  # it does not wait for what is kept
    assert process.returncode == 1, out
    assert list(folder.glob("anchor-results/*/screenshot-1.png"))
    assert any("--remote-debugging" in line for line in processes_of(folder))
    pid = re.search(r"end it now: kill (\d+), with all that is kept", out)
    assert pid is not None, out
    os.kill(int(pid[1]), signal.SIGTERM)
    assert gone(folder, 5.0), (processes_of(folder), list((folder / "tmp").rglob("*")))
    assert [entry.name for entry in (folder / ".pytest_anchor").iterdir()] == [".gitignore"]


def test_a_chromium_that_is_not_there(folder: Path) -> None:
    process = start(folder, "--anchor-chromium", str(folder / "nowhere"))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "AnchorConfigError: the local backend did not start: " in out
    assert "nowhere" in out


def test_a_chromium_is_looked_for_where_the_run_was_started(folder: Path) -> None:
    (folder / "bin").mkdir()
    (folder / "bin" / "chrome").write_text("#!/bin/sh\nexit 3\n")
    (folder / "bin" / "chrome").chmod(0o755)
    process = start(folder, "--anchor-chromium=bin/chrome", suite=LOSES)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out


LOSES = """
import pytest
from pytest_anchor import AnchorLostCreateError

def test_a(anchor_session):
    with pytest.raises(AnchorLostCreateError):
        anchor_session()
"""


def test_what_was_lost_with_the_run_is_nobodys(folder: Path) -> None:
    chromium = folder / "chromium"
    chromium.write_text("#!/bin/sh\nexit 3\n")
    chromium.chmod(0o755)
    process = start(folder, "--anchor-chromium", str(chromium), suite=LOSES)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "UNRESOLVED" not in out
    assert [entry.name for entry in (folder / ".pytest_anchor").iterdir()] == [".gitignore"]
