"""What surrounds the start of a broker: modules of the suite's, site customizations, debuggers, other versions."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from processes import CHECKOUT
from real_runs import Suite, environment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

CREATES = "def test_a(anchor_session):\n    anchor_session()\n"


def assert_works(suite: Suite, *args: str, env: dict[str, str] | None = None) -> None:
    """Check that a run creates and ends its sessions."""
    suite.write(CREATES)
    run = suite.run(*args, reaper=True, env=env)
    assert (run.status, run.outcomes, run.alive) == (0, {"passed": 1}, [])
    assert "1 session created: 1 at teardown" in run.section
    suite.wait_for_quiet()
    suite.assert_settled()


def with_path(suite: Suite, path: str) -> dict[str, str]:
    return {**environment(**suite.server.env), "PYTHONPATH": path}


@pytest.fixture
def python(suite: Suite) -> Path:
    """An interpreter of the suite's own, with all that is installed here."""
    home = suite.folder.with_name(f"{suite.folder.name}-venv")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    (packages_of(python) / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{CHECKOUT}\n")
    return python


def packages_of(python: Path) -> Path:
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    return site


def customize(python: Path, code: str) -> None:
    """Have every process of that interpreter's run *code* before all else.

    Not by a sitecustomize.py: Debian's and Ubuntu's Python finds one of its own first.
    """
    (packages_of(python) / "customized.py").write_text(code)
    (packages_of(python) / "customized.pth").write_text("import customized\n")


def for_brokers(suite: Suite, python: Path) -> None:
    """Have only brokers be that interpreter's: they are started, though pytest is forked."""
    with (suite.folder / "conftest.py").open("a") as conftest:  # read before the plugin is configured
        conftest.write(f"import sys\nsys.executable = {str(python)!r}\n")


SHADOWS = "import sys\nopen({path!r}, 'a').write(f'{{__name__}} in {{sys.orig_argv}}\\n')\n"
# What the broker imports, and pytest does not before the suite's conftest.py is read.
MODULES = ("requests.py", "filelock.py", "urllib3/__init__.py", "certifi.py", "hmac.py", "idna/__init__.py")


@pytest.mark.parametrize("path", ["", ".", "tests:.", "{folder}"], ids=repr)
def test_the_broker_imports_nothing_of_the_suites(suite: Suite, path: str):
    imported = suite.folder / "imported"
    for folder in (suite.folder, suite.folder / "tests"):
        for name in MODULES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(SHADOWS.format(path=str(imported)))
    assert_works(suite, env=with_path(suite, f"{path.format(folder=suite.folder)}{os.pathsep}{CHECKOUT}"))
    assert not imported.exists() or "pytest_anchor.broker" not in imported.read_text()


def test_the_broker_imports_none_of_the_standard_librarys_names_from_the_suites(suite: Suite, python: Path):
    """By the time that a conftest.py puts the root first on the path, pytest has imported these from where they are."""
    imported = suite.folder / "imported"
    names = ("json", "socket", "threading", "http", "email", "queue", "hashlib", "uuid", "select", "logging")
    for name in names:
        (suite.folder / "lib" / f"{name}.py").parent.mkdir(exist_ok=True)
        (suite.folder / "lib" / f"{name}.py").write_text(SHADOWS.format(path=str(imported)))
    suite.write(
        "import sys\nfrom pathlib import Path\nsys.path.insert(0, str(Path(__file__).parent / 'lib'))\n", "conftest.py"
    )
    for_brokers(suite, python)
    assert_works(suite)
    assert not imported.exists() or "pytest_anchor.broker" not in imported.read_text()


def test_the_broker_is_of_the_version_that_the_run_has(suite: Suite, python: Path):
    """From a checkout, though another version is installed."""
    package = packages_of(python) / "pytest_anchor"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('another version')\n")
    suite.write(CREATES)
    code = f"import sys; sys.path.insert(0, {str(CHECKOUT)!r}); import pytest; sys.exit(pytest.main(['-p', 'pytest_anchor', '--anchor-reaper', 'off']))"
    done = subprocess.run(
        [python, "-c", code],
        cwd=suite.folder,
        env=environment(**suite.server.env) | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 session created: 1 at teardown" in done.stdout
    suite.wait_for_quiet()
    suite.assert_settled()


CUSTOMIZATIONS = {
    "prints": "import sys\nprint('{\"ready\": true}\\n' * 1000, flush=True)\nprint('oh', file=sys.stderr, flush=True)\n",
    "cannot print": "import os\nos.close(1), os.close(2)\n",
    "fails": "raise RuntimeError('mine')\n",
    "starts threads and opens files": """
import threading, time
threading.Thread(target=time.sleep, args=(2,), daemon=True).start()
FILES = [open(__file__) for _ in range(20)]
""",
    "follows forks": """
import os, sys
fork = os.fork
def follow():
    pid = fork()
    if pid == 0:
        print("attached", flush=True)
        sys.settrace(lambda frame, event, argument: None)
    return pid
os.fork = follow
""",
    "adds arguments": """
import os, subprocess, _posixsubprocess
def refuse(*args, **kwargs):
    raise RuntimeError("a debugger has changed the command")
for name in ("posix_spawn", "posix_spawnp", "execv", "execve", "spawnv", "system"):
    setattr(os, name, refuse)
subprocess.Popen = subprocess.run = _posixsubprocess.fork_exec = refuse
""",
    "traces": "import sys, threading\nsys.settrace(lambda *_: None)\nthreading.settrace(lambda *_: None)\n",
    "ignores and blocks signals": """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
""",
    "asks for no bytecode, in another folder": "import os, sys\nsys.dont_write_bytecode = True\nos.chdir('/')\n",
}


# pytest itself says or does something else with these.
ONLY_BROKERS = ("prints", "cannot print", "asks for no bytecode, in another folder", "fails")


@pytest.mark.parametrize("name", CUSTOMIZATIONS)
def test_no_customization_keeps_a_broker_from_its_start(
    suite: Suite, python: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    customize(python, CUSTOMIZATIONS[name])
    if name in ONLY_BROKERS:
        for_brokers(suite, python)
        assert_works(suite)
    else:
        monkeypatch.setattr(sys, "executable", str(python))
        assert_works(suite, env=environment(**suite.server.env))


DIES = {
    "exits": "os._exit(3)",
    "is killed": "os.kill(os.getpid(), 9)",
    "says why": "sys.stderr.write('no such luck\\n'), os._exit(3)",
}


@pytest.mark.parametrize("how", DIES)
def test_a_broker_that_cannot_start_is_an_error_and_no_session(suite: Suite, python: Path, how: str):
    customize(python, f"import os, sys\n{DIES[how]}\n")
    for_brokers(suite, python)
    suite.write(CREATES + "def test_b(): pass\n")
    run = suite.run(reaper=True)
    assert run.outcomes == {"failed": 1, "passed": 1}
    assert "did not start: " in run.out
    assert "No session is created without it; the next request tries again." in run.out
    assert how != "says why" or "no such luck" in run.out
    assert not suite.server.requests
    suite.wait_for_quiet()


def test_a_start_that_failed_is_tried_again(suite: Suite, python: Path):
    customize(python, f"import os\nif not os.path.exists({str(suite.folder / 'works')!r}): os._exit(3)\n")
    for_brokers(suite, python)
    suite.write(CREATES + "def test_b(): open('works', 'w').close()\ndef test_c(anchor_session): anchor_session()\n")
    run = suite.run(reaper=True)
    assert run.outcomes == {"failed": 1, "passed": 2}
    assert suite.server.count("POST") == 1
    suite.wait_for_quiet()
    suite.assert_settled()
