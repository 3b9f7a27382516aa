"""Attacks by the API: none holds a process, and none reaches a terminal or a file raw."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import fault_server as faults
import pytest
from attacks import HOSTILE, SECRET, SLACK, a_dead_run, assert_plain
from fault_server import KEY, FaultServer
from processes import within
from real_runs import Suite, until
from records import opened
from side_by_side import side_by_side

from pytest_anchor.__main__ import main
from pytest_anchor.api import AnchorAPI
from pytest_anchor.api import caller as caller_module
from pytest_anchor.broker import reaper
from pytest_anchor.broker.broker import Broker
from pytest_anchor.broker.processes import Process
from pytest_anchor.cleanup.recovery import recover_all
from pytest_anchor.cleanup.sweep import SweepTarget, sweep_run
from pytest_anchor.registry.journal import Run
from pytest_anchor.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]


# An API that wants to hold us, against everything that asks it.


def endless_headers(handler: faults._Handler, _act: Callable[[], faults.Answer]) -> None:
    faults.trickle(b"HTTP/1.1 200 OK\r\nX-Header: ")(handler, _act)


def redirect_with_a_long_body(handler: faults._Handler, _act: Callable[[], faults.Answer]) -> None:
    """More than anybody should read; to a client that does, it comes slowly."""
    handler.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 1000000000\r\n\r\n")
    faults.trickle(bytes(10 << 20))(handler, _act)


HOLDS = {
    "ten megabytes": faults.body(b"[" * (10 << 20)),
    "ten megabytes of a list": faults.body(json.dumps({"data": {"items": ["x" * 100] * 100_000}}).encode()),
    "a byte now and then": faults.trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"),
    "headers without end": endless_headers,
    "silence": faults.silent,
    "a redirect to nowhere": faults.body(b"", 302, Location="http://["),
    "a redirect to no text": faults.body(b"", 307, Location="\xff\x1b[2J"),
    "a redirect to itself": faults.body(b"", 308, Location="/v1/sessions/all"),
    "a redirect with a long body": redirect_with_a_long_body,
    "wait for 31 years": faults.status(503, Retry_After="999999999"),
    "wait for the year 9999": faults.status(429, Retry_After="Fri, 31 Dec 9999 23:59:59 GMT"),
    "wait for something": faults.status(503, Retry_After="\x1b[2J soon"),
    "a cookie": faults.body(b"{}", 200, Set_Cookie="\xff=\x1b; Max-Age=" + "9" * 400),
}
BUDGET = 0.4  # seconds


def reap(_api: AnchorAPI, run: Run, settings: Settings) -> None:
    """What a broker does whose run is killed."""
    main, is_over = Process("main", os.getpid()), threading.Event()
    broker = Broker(settings._replace(folder=run.folder, reaper=True), is_over.set)
    broker.start(main)
    broker.remove(main)
    assert is_over.wait(10)
    broker.close()


ASKERS: list[Callable[[AnchorAPI, Run, Settings], object]] = [
    lambda api, run, _settings: sweep_run(SweepTarget(api, run, "r1"), timeout=BUDGET),
    lambda _api, run, settings: list(recover_all(settings._replace(folder=run.folder.parent / "next"))),
    lambda _api, run, _settings: main(["sweep", f"--timeout={BUDGET}", f"--registry={run.folder.parent}"]),
    lambda _api, _run, _settings: main(["sweep", f"--timeout={BUDGET}", "--run-id=r1"]),
    lambda _api, _run, _settings: main(["end", f"--timeout={BUDGET}", "abc"]),
    lambda _api, _run, _settings: main(["ls", "--remote"]),
    reap,
]


@pytest.mark.parametrize("name", HOLDS)
def test_no_answer_holds_anybody_beyond_his_budget(
    server: FaultServer,
    here: Path,
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
):
    monkeypatch.setattr(caller_module, "CALL_TIMEOUT", BUDGET / 4)  # of which `ls --remote` takes four
    monkeypatch.setattr(reaper, "REAPER_BUDGET", BUDGET)
    api = AnchorAPI(server.url, KEY)
    for method in ("GET", "DELETE"):
        server.fail_always(method, HOLDS[name])

    def ask(number: int) -> None:
        run = a_dead_run(here / str(number), "dead")
        opened(server, api, run, "dead-1")
        before = time.monotonic()
        within(10, lambda: ASKERS[number](api, run, settings._replace(sweep_timeout=BUDGET)))
        assert time.monotonic() - before < BUDGET + SLACK

    side_by_side(ask, range(len(ASKERS)), len(ASKERS))
    out, err = capsys.readouterr()
    assert_plain(out + err)
    assert SECRET not in out + err
    assert server.count("DELETE", "/v1/sessions/all") == 0


REDIRECTED = """
import pytest

def test_cannot_end(anchor_session):
    anchor_session()

@pytest.mark.parametrize("time", range(3))
def test_cannot_create(anchor_session, time):
    anchor_session()
"""


def test_redirects_to_nowhere_are_answers_like_any_other(suite: Suite):
    nowhere, no_text = HOLDS["a redirect to nowhere"], HOLDS["a redirect to no text"]
    suite.server.fail("POST", faults.slow(0), nowhere, no_text, faults.body(b"{}", 200, Location="http://["))
    for method in ("GET", "DELETE"):
        suite.server.fail_always(method, nowhere)
    suite.write(REDIRECTED)
    run = suite.run_here("-l", "--tb=long", "--full-trace", "--anchor-sweep-timeout=0.5", "--anchor-create-retries=0")
    assert run.outcomes == {"failed": 3, "passed": 1}
    assert "4 sessions" not in run.section
    assert "1 session created: 1 leaked, 3 unresolved" in run.section
    assert SECRET not in run.out + run.err


# Words for a terminal, from the API to everything that is written.


def test_nothing_of_the_api_reaches_a_terminal_or_a_file_raw(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    refusal = {"error": {"code": HOSTILE, "message": HOSTILE}}
    suite.server.fail_always("DELETE", faults.body(json.dumps(refusal).encode(), 403))

    def list_with_words(_handler: faults._Handler, act: Callable[[], faults.Answer]) -> faults.Answer:
        status, headers, body = act()
        data = json.loads(body)["data"]
        for item in data["items"]:
            item["status"], item["created_at"] = HOSTILE, HOSTILE
            item["tags"].insert(0, f"pytest-anchor:run={HOSTILE}")
        return status, headers, json.dumps({"data": data}).encode()

    suite.server.fail_always("GET", list_with_words)
    suite.server.fail("POST", faults.slow(0), faults.body(json.dumps({"data": {"id": HOSTILE}}).encode()))
    suite.write("def test_a(anchor_session): anchor_session()\ndef test_b(anchor_session): anchor_session()\n")
    run = suite.run(
        "--junitxml=report.xml", "-rA", "--anchor-sweep-timeout=0.3", "--anchor-create-retries=0", reaper=True
    )
    assert "1 session created: 1 leaked, 1 unresolved" in run.section
    (log,) = suite.registry.glob("*/reaper.log")
    until(lambda: "HTTP 403" in log.read_text())
    suite.kill_leftovers()  # it goes on looking for the creation that was lost
    until(lambda: not suite.processes)
    monkeypatch.chdir(suite.folder)
    for name, value in suite.server.env.items():
        monkeypatch.setenv(name, value)
    for command in ("ls", "ls --json", "ls --remote", "ls --remote --json", "sweep --timeout=1", "end --timeout=1 abc"):
        assert main(command.split()) == 1
    out, err = capsys.readouterr()
    assert r"\x1b" in err
    for text in (run.out, run.err, (suite.folder / "report.xml").read_text(), log.read_text(), out, err):
        assert_plain(text)
