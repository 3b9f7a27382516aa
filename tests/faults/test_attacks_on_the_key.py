"""What would show the API key, and does not."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import fault_server as faults
import pytest
from attacks import SECRET
from fault_server import KEY, FaultServer
from processes import CHECKOUT
from real_runs import Suite, environment, until

from pytest_anchor.api import AnchorAPI, Created
from pytest_anchor.broker.broker import Broker
from pytest_anchor.broker.owner import Owner, Request
from pytest_anchor.cleanup.recovery import Recovery
from pytest_anchor.client import Client
from pytest_anchor.errors import AnchorAPIError
from pytest_anchor.registry.journal import Run
from pytest_anchor.reporting.summary import Report
from pytest_anchor.session import AnchorSessionFactory
from pytest_anchor.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]


# The key.


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_ctrl_c_during_a_request_does_not_show_the_key(suite: Suite, method: str):
    suite.server.fail(method, faults.silent)
    suite.write("def test_a(anchor_session):\n    anchor_session().end()\n")
    process = suite.start("--full-trace", "-vv", "-l", "--anchor-sweep-timeout=1")
    until(lambda: suite.server.count(method))
    process.send_signal(signal.SIGINT)
    run = suite.finish(process)
    assert run.status == 2
    assert "KeyboardInterrupt" in run.out
    assert SECRET not in run.out + run.err


def test_a_key_that_is_a_parameter_is_in_no_file_nor_tag(suite: Suite):
    suite.write(
        "import os, pytest\n"
        "@pytest.mark.parametrize('key', [os.environ['ANCHORBROWSER_API_KEY'], 'other', os.environ['ANCHORBROWSER_API_KEY']])\n"
        "def test_a(anchor_session, key):\n    anchor_session()\n    assert key == 'other'\n"
    )
    suite.server.fail_always("DELETE", faults.status(500))  # the record is kept
    more = ["--anchor-prefetch=1", "--anchor-report=picture.json", "--anchor-sweep-timeout=1"]
    suite.run_here(*more, "--tb=no", "-rN", "-p", "no:cacheprovider")  # pytest's own would show it
    left = [
        path for path in suite.folder.rglob("*") if path.name in ("journal.jsonl", "picture.json", "screenshot-1.png")
    ]
    assert len(left) == 4, "the record, the picture and two screenshots"
    assert not [path for path in left if SECRET in str(path) or SECRET.encode() in path.read_bytes()]
    assert all("test_a[***" in path.read_text() for path in left if path.suffix.startswith(".json"))
    assert SECRET not in str(suite.server.sessions)


SLOW_BROKER = """
import pathlib, sys, time
if any("pytest_anchor.broker" in argument for argument in sys.orig_argv):
    pathlib.Path(__file__).with_name("begun").touch()
    time.sleep(3)
"""


def test_ctrl_c_while_the_broker_starts_does_not_show_the_key(suite: Suite):
    suite.write(SLOW_BROKER, "sitecustomize.py")
    suite.write("def test_a(anchor_session):\n    anchor_session()\n")
    env = {**environment(**suite.server.env), "PYTHONPATH": f"{suite.folder}:{CHECKOUT}"}
    process = suite.start("--full-trace", "-vv", "-l", reaper=True, env=env)
    until((suite.folder / "begun").exists)
    process.send_signal(signal.SIGINT)
    run = suite.finish(process)
    assert run.status == 2
    assert "key = '***'" in run.out
    assert SECRET not in run.out + run.err
    assert not suite.server.count("POST")
    suite.wait_for_quiet()


EXITS = """
import signal, pytest

def test_a(anchor_session):
    signal.signal(signal.SIGUSR1, lambda *_: pytest.exit("too late", returncode=7))
    anchor_session()
"""


def test_an_exit_during_a_request_does_not_show_the_key(suite: Suite):
    suite.server.fail("POST", faults.silent)
    suite.write(EXITS)
    process = suite.start("--full-trace", "-vv", "-l", "--anchor-sweep-timeout=1")
    until(lambda: suite.server.count("POST"))
    process.send_signal(signal.SIGUSR1)
    run = suite.finish(process)
    assert run.status == 7
    assert "too late" in run.out
    assert SECRET not in run.out + run.err


@pytest.mark.parametrize("workers", [0, 1])
def test_the_key_is_in_no_warning(suite: Suite, workers: int):
    suite.write("import warnings\ndef test_a(anchor_session):\n    warnings.warn(anchor_session().cdp_url)\n")
    run = suite.run_here("-W", "default", workers=workers)
    assert run.outcomes == {"passed": 1, "warning": 1}
    assert SECRET not in run.out + run.err


def test_a_key_that_a_url_must_quote_is_not_seen_either(suite: Suite):
    key = "sk/SECRET+4711=="
    suite.server.keys = {key}

    def with_the_key_quoted(_handler: faults._Handler, act: Callable[[], faults.Answer]) -> faults.Answer:
        status, headers, body = act()
        return status, headers, body.replace(KEY.encode(), quote(key, safe="").encode())

    suite.server.fail_always("POST", with_the_key_quoted)
    suite.write("def test_a(anchor_session):\n    print(anchor_session().cdp_url)\n    assert 0\n")
    run = suite.run_here(env=environment(ANCHORBROWSER_API_KEY=key, ANCHORBROWSER_BASE_URL=suite.server.url))
    assert run.outcomes == {"failed": 1}
    assert "apiKey=***" in run.out
    assert SECRET not in run.out + run.err


def test_the_key_is_in_no_repr_and_no_pickle_of_an_error(
    server: FaultServer, run: Run, api: AnchorAPI, owner: Owner, serve: Callable[[Settings], Client], settings: Settings
):
    client = serve(settings._replace(folder=settings.folder.with_name("served"), create_retries=0))
    factory = AnchorSessionFactory(client, {}, lambda: "t")
    handle, session = factory(), owner.create({}, Request("t"))
    report = Report(run.read(), run.folder)
    report.recovered = [Recovery(run, 0.0)]
    secretive = Created("abc", f"ws://127.0.0.1/?apiKey={KEY}", f"http://127.0.0.1/?apiKey={KEY}")
    broker = Broker(settings, lambda: None)
    things = [client, factory, handle, owner, session, broker, api, run, report, *report.recovered]
    things += [settings, secretive, report.state]
    insides = [one for one in things if hasattr(one, "__dict__") and one not in (api, secretive, session)]
    for thing in [*things, *(list(vars(one).values()) for one in insides)]:
        assert SECRET not in repr(thing).replace(repr(settings.api_key), "the key itself")
    not_json = faults.body(KEY.encode(), 500)
    server.fail("POST", faults.status(402, KEY), not_json, faults.body(f'{{"data": {{"id": "{KEY} "}}}}'.encode()))
    for _ in range(3):
        with pytest.raises(AnchorAPIError, match=r"\*\*\*") as caught:
            factory()
        assert SECRET.encode() not in pickle.dumps(caught.value)


WAITS = """
import time
from pathlib import Path

def test_a(anchor_session):
    anchor_session()
    Path("there").touch()
    while not Path("go").exists():
        time.sleep(0.02)
"""


def test_no_process_of_a_run_has_the_key_in_its_arguments_and_its_broker_none_in_its_environment(suite: Suite):
    suite.write(WAITS)
    process = suite.start(workers=1, reaper=True)
    until((suite.folder / "there").exists)
    seen = {command: Path(f"/proc/{pid}/environ").read_bytes() for pid, command in suite.processes.items()}
    (suite.folder / "go").touch()
    assert suite.finish(process).status == 0
    assert len(seen) == 3  # the controller, a worker and the broker
    assert SECRET not in str(list(seen))
    assert [SECRET.encode() in environ for command, environ in seen.items() if "pytest_anchor.broker" in command] == [
        False
    ]
