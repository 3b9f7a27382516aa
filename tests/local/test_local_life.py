"""How the backend ends, and that nothing is left of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from backend import ROOT, Backend, processes, until
from forked import ForkedProcess, local_server
from processes import PATIENCE, read_line

from pytest_anchor.registry.locks import BROKER_LOCK, note_process

PROGRAM = (sys.executable, "-m", "pytest_anchor", "local")
SOON = 2.0  # seconds: the promise


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals(backends: Callable[..., Backend], number: int):
    backend = backends()
    backend.create()
    assert backend.chromiums()
    backend.process.send_signal(number)
    until(lambda: not backend.left(), within=SOON)
    assert backend.process.wait(PATIENCE) == 0
    assert backend.stop() == ""


def test_a_signal_amid_a_creation(backends: Callable[..., Backend], tmp_path: Path):
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    backend = backends("--chromium", str(program))
    thread = threading.Thread(target=lambda: pytest.raises(requests.ConnectionError, backend, "POST", "/v1/sessions"))
    thread.start()
    until(backend.chromiums)
    backend.process.terminate()
    until(lambda: not backend.left(), within=SOON)
    thread.join(PATIENCE)
    assert backend.process.wait(PATIENCE) == 0


def test_the_backend_itself_is_killed(backends: Callable[..., Backend]):
    backend = backends()
    backend.create()
    backend.create()
    assert len(backend.profiles()) == 2
    backend.process.kill()
    until(lambda: not backend.chromiums() and not backend.profiles(), within=SOON)
    # Its empty folder goes with the next backend's start, and a living one's folder stays.
    left = list(backend.temp.glob("pytest-anchor-local-*"))
    other = Backend("--chromium", "/bin/true", TMPDIR=str(backend.temp))
    alive = list(backend.temp.glob("pytest-anchor-local-*"))
    assert len(left) == len(alive) == 1
    assert left != alive
    (backend.temp / "pytest-anchor-local-link").symlink_to(ROOT)
    third = Backend("--chromium", "/bin/true", TMPDIR=str(backend.temp))
    assert alive[0].exists()
    for each in (other, third):
        each.stop()
        each.temp.rmdir()
    (backend.temp / "pytest-anchor-local-link").unlink()


def with_parent(*arguments: str) -> tuple[Backend, subprocess.Popen[str]]:
    backend = Backend(*arguments, prefix=("/bin/sh", "-c", '"$@" & wait', "sh"))
    return backend, backend.process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_parent_dies(number: int):
    backend, parent = with_parent()
    backend.create()
    assert backend.chromiums()
    parent.send_signal(number)
    until(lambda: not backend.left(), within=SOON)
    until(lambda: refused(backend), within=SOON)
    backend.remove()


def test_keep(tmp_path: Path):
    mark = str(1_000_000 + os.getpid())
    backend, parent = with_parent("--browserless", "--keep", "--cap", mark)
    parent.kill()
    parent.wait(PATIENCE)
    with pytest.raises(AssertionError, match="still"):
        until(lambda: refused(backend), within=0.7)
    (pid,) = processes(f"--keep --cap {mark}")
    os.kill(pid, signal.SIGTERM)
    until(lambda: refused(backend))
    backend.remove()


def refused(backend: Backend) -> bool:
    try:
        backend("GET", "/v1/billing")
    except requests.ConnectionError:
        return True
    return False


def test_a_run_is_watched(tmp_path: Path):
    """It goes when neither the run's broker lives nor any of its processes, whatever its own parent does."""
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); "
        "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    broker, worker = (
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in (BROKER_LOCK, "unrelated.lock")
    )
    for process in (broker, worker):
        assert read_line(process) == "held\n"
    note_process(tmp_path, "gw0", worker.pid)
    backend, parent = with_parent("--watch-run", str(tmp_path))
    backend.create()
    parent.kill()
    parent.wait(PATIENCE)
    broker.kill()
    broker.wait(PATIENCE)
    with pytest.raises(AssertionError, match="still"):
        until(lambda: refused(backend), within=0.5)
    worker.kill()
    until(lambda: not backend.left(), within=SOON)
    for process in (broker, worker):
        process.communicate(timeout=PATIENCE)
    backend.remove()


def test_a_run_that_cannot_be_watched(tmp_path: Path):
    (tmp_path / "local.alive").mkdir()
    status, said = run("--browserless", "--watch-run", str(tmp_path))
    assert status == 2
    assert "Is a directory" in said


def run(*arguments: str) -> tuple[int, str]:
    process = ForkedProcess([*PROGRAM, *arguments], ROOT, dict(os.environ), local_server)
    return process.wait(20), "".join(process.communicate(20))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "not loopback"),
        (["--host", "example.com"], "not loopback"),
        (["--port", "65536"], "from 0 to 65535"),
        (["--port", "-1"], "from 0 to 65535"),
        (["--rate", "5"], "5/60"),
        (["--rate", "0/60"], "5/60"),
        (["--cap", "0"], "from 1"),
        (["--end-latency", "-1"], "seconds"),
        (["--end-latency", "x"], "seconds"),
        (["--credits-per-hour", "-1"], "not a number of credits"),
        (["--credits-per-hour", "nan"], "not a number of credits"),
        (["--watch-run", "/nonexistent"], "not a folder"),
        (["--chromium", "/nonexistent"], "the Chromium that was named, /nonexistent, is no program"),
        (["--keep", "--watch-run", "."], "not allowed with"),
        (["--key-from-stdin", "--browserless"], "no API key"),
    ],
)
def test_bad_options(arguments: list[str], words: str):
    status, output = run(*arguments)
    assert status == 2
    assert words in output
    assert "Traceback" not in output


def test_the_port_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        status, output = run("--browserless", "--port", str(server.getsockname()[1]))
    assert status == 2
    assert "address already in use" in output
    assert "Traceback" not in output


def test_help():
    status, output = run("--help")
    assert status == 0
    for option in (
        "--host",
        "--port",
        "--browserless",
        "--chromium",
        "--rate",
        "--cap",
        "--keep",
        "--watch-run",
        "live_view_url",
        "recording",
    ):
        assert option in output


def test_without_aiohttp(tmp_path: Path):
    (tmp_path / "aiohttp.py").write_text("raise ModuleNotFoundError(\"No module named 'aiohttp'\", name='aiohttp')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*PROGRAM, "--browserless"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    assert done.stdout + done.stderr == "The local backend needs aiohttp: pip install 'pytest-anchor[local]'.\n"
