"""Attacks on the registry: each ends in a sentence, in time, and with no loss for anyone else."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fault_server as faults
import pytest
from attacks import (
    NOBODY,
    ROOT,
    SECRET,
    a_dead_run,
    assert_not_followed,
    fifo,
    folder,
    for_everybody,
    junk,
    link,
    put_in_place,
    somebody_elses,
)
from fault_server import KEY, FaultServer
from processes import within
from raw_broker import Served
from real_runs import Suite, environment, until
from records import opened

from pytest_anchor.__main__ import main
from pytest_anchor.api import AnchorAPI
from pytest_anchor.cleanup.recovery import Recovery
from pytest_anchor.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]


@pytest.mark.parametrize("put", [link, fifo, folder, junk, for_everybody, somebody_elses])
@pytest.mark.parametrize(
    "name", ["broker.lock", "gw9.1.pid", "sweep.lock", "journal.lock", "reaper.lock", "reaper.log", "local.alive"]
)
def test_an_odd_file_of_a_dead_run_hides_no_session_and_stops_no_recovery(
    server: FaultServer,
    api: AnchorAPI,
    here: Path,
    next_run: Callable[..., list[Recovery]],
    capsys: pytest.CaptureFixture[str],
    put: Callable[[Path], None],
    name: str,
):
    odd, good = a_dead_run(here, "a-odd"), a_dead_run(here, "b-good")
    theirs, ours = opened(server, api, odd, "a-odd-1"), opened(server, api, good, "b-good-1")
    put_in_place(put, odd.folder / name)
    assert within(5, lambda: main(["ls"])) == 1
    recovered = within(5, next_run)
    assert ours not in server.alive
    assert theirs not in server.alive or any(one.left or one.problem for one in recovered)
    capsys.readouterr()
    status = within(5, lambda: main(["sweep", "--timeout=5"]))
    assert theirs not in server.alive or (status and capsys.readouterr().err)
    assert_not_followed(odd.folder / name)


def test_a_registry_among_other_files_costs_none_of_them(suite: Suite):
    suite.registry = suite.folder
    (suite.folder / "pytest.ini").write_text("[pytest]\nanchor_registry = .\naddopts = -p no:cacheprovider\n")
    precious = [suite.folder / name for name in ("src/a.py", ".git/config", "out/0123456789abcdef/screen.png")]
    for file in precious:
        file.parent.mkdir(parents=True)
        file.write_text("precious")
        os.utime(file.parent, (0, 0))
    suite.write("import os\ndef test_a(anchor_session):\n    anchor_session()\n")
    suite.write("import os\ndef test_a(anchor_session):\n    anchor_session()\n    os._exit(1)\n", "test_b.py")

    def foreign() -> list[Path]:
        return sorted(one for name in ("src", ".git", "out") for one in (suite.folder / name).rglob("*"))

    before = foreign()
    for _ in range(2):
        suite.run("test_b.py")
    suite.run("test_it.py")
    assert not suite.alive
    for command in (["ls"], ["sweep"], ["sweep", "--dry-run"]):
        assert main([*command, "--registry", str(suite.folder)]) == 0
    assert foreign() == before
    assert all(file.read_text() == "precious" for file in precious)


def test_the_command_that_a_run_advises_ends_what_it_left(suite: Suite, monkeypatch: pytest.MonkeyPatch):
    suite.server.fail_always("DELETE", faults.status(500))
    suite.write("def test_a(anchor_session): anchor_session()\n")
    run = suite.run_here("--anchor-registry", "else where", "--anchor-sweep-timeout=0.5")
    assert suite.alive
    suite.wait_for_quiet()  # as long as its broker lives, so does the run
    (advice,) = re.findall(r"so does: (python -m pytest_anchor .*)", run.section)
    suite.server.fail_always("DELETE", None)
    monkeypatch.setenv("ANCHORBROWSER_API_KEY", KEY)  # and no base URL
    assert main(shlex.split(advice)[3:]) == 0
    assert not suite.alive


@pytest.mark.parametrize("put", [link, fifo, folder, junk])
@pytest.mark.parametrize("name", ["gw9.1.pid", "main.1.pid", "reaper.lock", "reaper.log", "sweep.lock", "journal.lock"])
def test_an_odd_file_does_not_keep_the_reaper_from_its_work(
    server: FaultServer, settings: Settings, quick: None, put: Callable[[Path], None], name: str
):
    served = Served(settings._replace(reaper=True))
    served.connect().create()
    put_in_place(put, settings.folder / name)
    served.leave("main")  # without a last sweep, as a run that is killed
    try:
        until(lambda: not server.alive, 5)
    finally:
        served.end()
    assert server.count("POST") == 1
    assert_not_followed(settings.folder / name)


REPLACES = """
import os
from pathlib import Path

def test_it(anchor_session):
    anchor_session()
    (journal,) = Path(".pytest_anchor").glob("*/journal.jsonl")
    for name in ("reaper.lock", "reaper.log", "broker.lock", "main.1.pid", "sweep.lock"):
        path = journal.with_name(name)
        path.unlink(missing_ok=True)
        {put}
    anchor_session()
"""


@pytest.mark.parametrize(
    "put",
    ["path.symlink_to(Path('victim').absolute())", "os.mkfifo(path)", "path.mkdir()", "path.write_bytes(b'\\xff')"],
)
def test_files_replaced_under_a_run_cost_neither_its_summary_nor_the_key(suite: Suite, put: str):
    suite.write(REPLACES.format(put=put))
    (suite.folder / "victim").write_text("precious")
    show = ["-vv", "-l", "--tb=long", "--full-trace"]
    try:
        run = suite.run(*show, "--anchor-sweep-timeout=1", reaper=True)
    finally:
        suite.kill_leftovers()
    assert "created" in run.section
    assert not run.alive
    assert "INTERNALERROR" not in run.out
    assert SECRET not in run.out + run.err
    assert (suite.folder / "victim").read_text() == "precious"


# Registries that are not ours.


@pytest.mark.parametrize("whose", ["somebody else's", "everybody's"])
def test_a_registry_that_others_prepared_is_neither_recovered_nor_used(
    suite: Suite, server: FaultServer, api: AnchorAPI, whose: str
):
    if whose == "somebody else's" and not ROOT:
        pytest.skip("giving files away takes root")
    opened(server, api, a_dead_run(suite.folder, "dead"), "dead-1")
    if whose == "somebody else's":
        os.chown(suite.registry, NOBODY, NOBODY)
    else:
        suite.registry.chmod(0o777)
    suite.write("def test_a(anchor_session):\n    anchor_session()\ndef test_b(): pass\n")
    run = suite.run_here()
    assert run.outcomes == {"failed": 1, "passed": 1}
    assert f"the session registry '{suite.registry}' cannot be used: " in run.out
    assert not server.requests


@pytest.mark.parametrize(
    ("test", "status"),
    [("def test_a(): pass\n", 0), ("def test_a(anchor_session):\n    anchor_session()\n", 1)],
    ids=["no session", "a session"],
)
def test_a_registry_that_we_may_not_enter_is_no_trouble_to_those_who_need_none(suite: Suite, test: str, status: int):
    # What `sudo pytest` leaves to the user who runs it the next day.
    limited = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if ROOT else []
    if limited and not shutil.which("setpriv"):
        pytest.skip("root may enter everything, without setpriv")
    a_dead_run(suite.folder, "dead")
    suite.registry.chmod(0)
    suite.write(test)
    process = subprocess.Popen(
        [*limited, sys.executable, "-m", "pytest", "-p", "pytest_anchor", "-W", "error"],
        cwd=suite.folder,
        env=environment(**suite.server.env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate(timeout=60)
    suite.registry.chmod(0o700)
    assert process.returncode == status, out + err
    assert not err
    assert ("cannot be used" in out) == bool(status)
    assert not suite.server.requests


@pytest.mark.parametrize("what", ["shutil.rmtree('.pytest_anchor')", "os.rename('.pytest_anchor', 'elsewhere')"])
@pytest.mark.parametrize("watched", [False, True])
def test_a_registry_that_a_test_removes_leaks_nothing(suite: Suite, what: str, watched: bool):
    suite.write(f"import os, shutil\ndef test_a(anchor_session):\n    anchor_session(), anchor_session()\n    {what}\n")
    run = suite.run(reaper=watched)
    assert run.status == 0
    assert not run.alive
    assert "INTERNALERROR" not in run.out
    until(lambda: not suite.processes)
