"""Every way to switch the plugin on and off, and what it costs a run that does not use it. Real processes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from fault_server import FaultServer
from processes import CHECKOUT
from real_runs import Suite, environment

pytestmark = pytest.mark.slow

USES_IT = "def test_a(anchor_session):\n    assert anchor_session().id\n"
# Other plugins of this environment are not what is tested; xdist stays.
OTHERS = [
    switch
    for plugin in entry_points(group="pytest11")
    if not plugin.name.startswith(("pytest_anchor", "xdist"))
    for switch in ("-p", f"no:{plugin.name}")
]
CREATED = "1 session created: 1 at teardown\n"

# A name that cannot be imported, as if the package were not installed.
WITHOUT_XDIST = "import sys\nsys.modules['xdist'] = None\n"

# As on Windows.
WITHOUT_FCNTL = "import sys\nsys.modules['fcntl'] = None\n"

UNUSED = """
import signal, sys, threading

def pytest_unconfigure(config):
    for name in ("requests", "urllib3", "filelock", "aiohttp", "ssl"):
        assert name not in sys.modules, name
    ours = {name for name in sys.modules if name.startswith("pytest_anchor.")}
    assert not ours & {f"pytest_anchor.{name}" for name in ("session", "registry", "broker", "sweep", "report")}
    from importlib.machinery import SourceFileLoader
    assert {type(sys.modules[name].__loader__) for name in ours} == {SourceFileLoader}, "rewritten by pytest"
    assert not [thread for thread in threading.enumerate() if "anchor" in thread.name]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    print("nothing was imported")
"""


def pytest_run(suite: Suite, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as a user would, without this suite's own options."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "error", *OTHERS, *args],
        cwd=suite.folder,
        env=environment(**suite.server.env, **env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def suite(tmp_path: Path, server: FaultServer) -> Iterator[Suite]:
    suite = Suite(tmp_path, server)
    suite.write(USES_IT)
    yield suite
    suite.wait_for_quiet()


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for ``sys.path`` in which the checkout looks like an installed package with an entry point."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "pytest_anchor").symlink_to(CHECKOUT / "pytest_anchor")
    info = folder / "pytest_anchor-0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pytest-anchor\nVersion: 0.0\n")
    (info / "entry_points.txt").write_text("[pytest11]\npytest_anchor = pytest_anchor.plugin\n")
    return str(folder)


def test_from_a_checkout(suite: Suite):
    run = suite.run()
    assert run.status == 0
    assert run.section == CREATED
    assert not run.alive


@pytest.mark.parametrize(
    ("args", "autoload"),
    [([], True), (["-p", "pytest_anchor"], True), (["-p", "pytest_anchor"], False), (["--strict-config", "-v"], True)],
    ids=["entry-point", "both", "autoload-off", "strict"],
)
def test_installed(suite: Suite, installed: str, args: list[str], autoload: bool):
    off = "" if autoload else "1"
    done = pytest_run(suite, *args, PYTHONPATH=installed, PYTEST_DISABLE_PLUGIN_AUTOLOAD=off)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 session created: 1 at teardown" in done.stdout
    assert done.stdout.count("= anchor =") == 1
    assert not suite.alive


def test_from_pytest_plugins_and_from_an_ini_file(suite: Suite):
    (suite.folder / "pytest.ini").write_text("[pytest]\naddopts = -p pytest_anchor\n")
    done = pytest_run(suite)
    assert (done.returncode, done.stderr) == (0, "")
    (suite.folder / "pytest.ini").write_text("[pytest]\n")
    suite.write('pytest_plugins = ["pytest_anchor"]\n', "conftest.py")
    done = pytest_run(suite)
    assert (done.returncode, done.stderr) == (0, "")
    assert CREATED in done.stdout


def test_without_xdist(suite: Suite):
    run = suite.run("-p", "no:xdist")
    assert (run.status, run.section) == (0, CREATED)
    (suite.folder / "sitecustomize.py").write_text(WITHOUT_XDIST)
    env = environment(**suite.server.env)
    run = suite.run(env={**env, "PYTHONPATH": f"{suite.folder}:{CHECKOUT}"})
    assert (run.status, run.section) == (0, CREATED)


def test_where_no_lock_tells_who_lives_there_are_no_sessions_and_all_else_runs(suite: Suite):
    (suite.folder / "sitecustomize.py").write_text(WITHOUT_FCNTL)
    suite.write(f"{USES_IT}\ndef test_b(): pass\n")
    run = suite.run("-rf", env={**environment(**suite.server.env), "PYTHONPATH": f"{suite.folder}:{CHECKOUT}"})
    assert (run.status, run.outcomes) == (1, {"failed": 1, "passed": 1})
    assert "AnchorRegistryError: this system cannot tell which processes live" in run.out
    assert not suite.server.requests
    assert not suite.registry.exists()


def test_with_xdist(suite: Suite):
    run = suite.run(workers=2)
    assert (run.status, run.section) == (0, CREATED)


def test_a_run_within_a_run_leaves_the_finder_of_our_modules(suite: Suite):
    suite.write(
        "import sys, pytest, pytest_anchor\n"
        "def test_a(tmp_path):\n"
        "    (tmp_path / 'test_b.py').write_text('def test_b(): pass')\n"
        "    assert pytest.main(['-p', 'pytest_anchor', '-p', 'no:cacheprovider', str(tmp_path)]) == 0\n"
        "    assert sys.meta_path[0] is pytest_anchor._Finder\n"
    )
    run = suite.run()
    assert run.status == 0, run.out


def test_threads_that_go_on_do_not_disturb_the_end_of_a_process(suite: Suite):
    suite.write(
        "import threading, time\ndef test_a(anchor_session):\n    assert anchor_session().id\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    run = suite.run("--anchor-end=background", "--anchor-prefetch=1", env=environment(**suite.server.env))
    assert (run.status, run.err) == (0, "")


@pytest.mark.parametrize("autoload", [True, False])
def test_switched_off(suite: Suite, installed: str, autoload: bool):
    suite.write(
        "import sys\ndef test_a(request):\n    assert not [n for n in sys.modules if n.startswith('pytest_anchor.')]\n"
    )
    switch = ["-p", "no:pytest_anchor"] if autoload else []
    off = "" if autoload else "1"
    done = pytest_run(suite, *switch, PYTHONPATH=installed, PYTEST_DISABLE_PLUGIN_AUTOLOAD=off)
    assert done.returncode == 0, done.stdout
    help_text = pytest_run(suite, *switch, "--help", PYTHONPATH=installed, PYTEST_DISABLE_PLUGIN_AUTOLOAD=off).stdout
    assert "--anchor" not in help_text


def test_switched_off_after_it_was_switched_on(suite: Suite):
    # pytest shows a plugin's fixtures even after it was blocked; asking for one then says so.
    suite.write("def test_a(anchor_session): pass\ndef test_b(): pass\n")
    done = pytest_run(suite, "-p", "pytest_anchor", "-p", "no:pytest_anchor")
    assert "is switched off: -p no:pytest_anchor" in done.stdout
    assert "1 passed, 1 error" in done.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unused_plugin_costs_and_leaves_nothing(suite: Suite, workers: int):
    suite.write(UNUSED, "conftest.py")
    suite.write("def test_a(): pass\n")
    run = suite.run("-s", workers=workers, env=environment(**suite.server.env))  # a process that has imported nothing
    assert run.status == 0, run.err
    assert "nothing was imported" in run.out
    assert not run.section
    assert not suite.registry.exists()
    assert not suite.server.requests


def test_an_unused_plugin_keeps_no_module_until_the_interpreters_end(suite: Suite):
    def kept(*options: str) -> set[str]:
        """The modules of pytest that are emptied then, as something still holds them: some are by themselves."""
        err = pytest_run(suite, *options, PYTHONVERBOSE="1").stderr
        assert ("import 'pytest_anchor.client'" in err) == bool(options)
        return set(re.findall(r"^# cleanup\[3\] wiping (_pytest\S*)", err, re.MULTILINE))

    suite.write("def test_a(): pass\n")
    assert kept("-p", "pytest_anchor") <= kept()
