"""One fault at a time, in one process and in a worker: what is alive at the server afterwards, and what was said."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, urlsplit

import fault_server as faults
import pytest
from fault_server import FaultServer
from real_runs import Suite

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

ONE = """
def test_one(anchor_session):
    anchor_session()
"""
LOST = """
import pytest
from pytest_anchor import AnchorLostCreateError

def test_one(anchor_session):
    with pytest.raises(AnchorLostCreateError):
        anchor_session()
"""
SHORT = ("--anchor-sweep-timeout", "1")


class Case(NamedTuple):
    name: str
    arrange: Callable[[FaultServer], None]
    says: tuple[str, ...]  # in the anchor section
    test: str = ONE
    args: tuple[str, ...] = ()
    status: int = 0
    alive: int = 0
    recorded: bool | None = None  # None: as long as something is alive
    workers: tuple[int, ...] = (0, 1)


def always(method: str, fault: faults.Fault) -> Callable[[FaultServer], None]:
    return lambda server: server.fail_always(method, fault)


def first(method: str, *some: faults.Fault) -> Callable[[FaultServer], None]:
    return lambda server: server.fail(method, *some)


def revoked(server: FaultServer) -> None:
    """The key is revoked at the moment it is used to end the session."""

    def fault(_handler: object, act: Callable[[], faults.Answer]) -> faults.Answer:
        server.keys.clear()
        return act()

    server.fail("DELETE", fault)


def over(already_over: int | None, lists_as: str = "") -> Callable[[FaultServer], None]:
    """Sessions that the server ends by itself, and what it says of them afterwards."""

    def created(_handler: object, act: Callable[[], faults.Answer]) -> faults.Answer:
        answer = act()
        server_.end(json.loads(answer[2])["data"]["id"])
        return answer

    def listed(_handler: object, act: Callable[[], faults.Answer]) -> faults.Answer:
        status, headers, body = act()
        return status, headers, body.replace(b'"completed"', json.dumps(lists_as).encode())

    def arrange(server: FaultServer) -> None:
        nonlocal server_
        server_ = server
        server.already_over = already_over
        server.fail("POST", created)
        if lists_as:
            server.fail_always("GET", listed)

    server_: FaultServer
    return arrange


def lost(fault: faults.Fault, *, list_delay: float = 0.0) -> Callable[[FaultServer], None]:
    def arrange(server: FaultServer) -> None:
        server.list_delay = list_delay
        server.fail("POST", fault)

    return arrange


def hostile_id(value: object) -> Callable[[FaultServer], None]:
    return lost(faults.lost_body(json.dumps({"data": {"id": value, "cdp_url": "ws://x"}}).encode()))


def hostile_list(server: FaultServer) -> None:
    """A list that ignores the filter, and calls something of ours `all`."""

    def listed(handler: faults._Handler, act: Callable[[], faults.Answer]) -> faults.Answer:
        answer = act()
        tag = parse_qs(urlsplit(handler.path).query)["tags"][0]
        items = [{"session_id": s.id, "status": "running", "tags": s.tags} for s in server.sessions.values() if s.alive]
        items += [{"session_id": one, "status": "running", "tags": [tag]} for one in ("all", "../all", "", None, 7)]
        return answer[0], {}, json.dumps({"data": {"items": [*items, None, 7, {"tags": tag}]}}).encode()

    server.fail("POST", faults.lost_reset)
    server.fail_always("GET", listed)


LEAK = (
    "1 session created: 1 leaked",
    "LEAKED ",
    "test_it.py::test_one",
    "end it by hand: python -m pytest_anchor end ",
)
ALREADY_OVER = ("1 session created: 1 already over",)
AT_TEARDOWN = ("1 session created: 1 at teardown",)
BY_SWEEP = ("1 session created: 1 by the sweep",)
UNRESOLVED = ("0 sessions created: 1 unresolved", "UNRESOLVED a creation of test_it.py::test_one")

DELETE_CASES = [
    Case("fine", lambda _: None, AT_TEARDOWN, workers=(0,)),
    Case("500-twice", first("DELETE", *[faults.status(500)] * 2), AT_TEARDOWN, workers=(0,)),
    Case("500-through-teardown", first("DELETE", *[faults.status(500)] * 4), BY_SWEEP, workers=(0,)),
    Case(
        "500-for-ever",
        always("DELETE", faults.status(500, "out of browsers")),
        (*LEAK, "HTTP 500: “out of browsers” (tried ", "Anchor's support"),
        args=SHORT,
        status=1,
        alive=1,
    ),
    Case(
        "500-only-warn",
        always("DELETE", faults.status(500)),
        LEAK,
        args=(*SHORT, "--anchor-on-leak=warn"),
        alive=1,
        workers=(0,),
    ),
    Case("503-retry-after", first("DELETE", faults.status(503, Retry_After="1")), AT_TEARDOWN, workers=(0,)),
    Case("429-hostile-retry-after", first("DELETE", faults.status(429, Retry_After="soon")), AT_TEARDOWN, workers=(0,)),
    Case("reset-once", first("DELETE", faults.reset), AT_TEARDOWN, workers=(0,)),
    Case("reset-after-effect", first("DELETE", faults.lost_reset), ALREADY_OVER, workers=(0,)),
    Case(
        "reset-for-ever",
        always("DELETE", faults.reset),
        (*LEAK, "reset by peer (tried ", "Check the network and the base URL"),
        args=SHORT,
        status=1,
        alive=1,
        workers=(0,),
    ),
    Case("revoked", revoked, (*LEAK, "HTTP 401: “Invalid API Key", "ANCHORBROWSER_API_KEY"), status=1, alive=1),
    Case("refused-but-key-fine", first("DELETE", faults.status(403)), BY_SWEEP, workers=(0,)),
    *(Case(f"over-{answer}", over(answer), ALREADY_OVER, workers=(0,)) for answer in (401, 404, 410)),
    Case("over-200", over(None), AT_TEARDOWN, workers=(0,)),
    Case("over-500", over(500), ALREADY_OVER, args=SHORT, workers=(0,)),
    Case("over-but-listed", over(401, "active"), (*ALREADY_OVER, "NOTE ", "'active'"), workers=(0,)),
]
CREATE_CASES = [
    Case("reset-after-effect", lost(faults.lost_reset), BY_SWEEP),
    Case("truncated", lost(faults.lost_truncated), BY_SWEEP, workers=(0,)),
    Case("no-json", lost(faults.lost_body(b"<html>Bad gateway</html>")), BY_SWEEP, workers=(0,)),
    Case("no-id", lost(faults.lost_body(b'{"data": {}}')), BY_SWEEP, workers=(0,)),
    Case("500-after-effect", lost(faults.lost_status(500)), BY_SWEEP, workers=(0,)),
    Case("listed-late", lost(faults.lost_reset, list_delay=2), BY_SWEEP, workers=(0,)),
    Case("hostile-list", hostile_list, BY_SWEEP, workers=(0,)),
    *(
        Case(f"id-{value!r}", hostile_id(value), BY_SWEEP, workers=(0,))
        for value in ("all", "ALL", "../all", "%61ll", "", "a b\r\n", None, ["all"])
    ),
    Case("500-without-effect", first("POST", faults.status(500)), UNRESOLVED, args=SHORT, status=1, recorded=True),
]


@pytest.mark.parametrize(
    ("case", "workers", "test"),
    [
        pytest.param(case, workers, test, id=f"{kind}-{case.name}-{workers or 'alone'}")
        for kind, cases, test in (("delete", DELETE_CASES, ONE), ("create", CREATE_CASES, LOST))
        for case in cases
        for workers in case.workers
    ],
)
def test_fault(suite: Suite, case: Case, workers: int, test: str):
    case.arrange(suite.server)
    suite.write(test)
    retries = "0" if test == LOST else "2"  # what comes of a creation that is not tried again
    run = suite.run_here(*case.args, f"--anchor-create-retries={retries}", workers=workers)
    assert run.outcomes.get("passed") == 1
    for text in case.says:
        assert text in run.section
    if case.alive:
        (leaked,) = run.alive
        assert f"end --base-url {suite.server.url} {leaked}\n" in run.section
        assert f"LEAKED {leaked} of test_it.py::test_one{' [gw' if workers else chr(10)}" in run.section
    assert (run.status, len(run.alive)) == (case.status, case.alive)
    assert run.recorded == (bool(case.alive) if case.recorded is None else case.recorded)
    assert suite.server.count("POST") == 1


def test_a_refused_creation_is_an_error_and_no_session(suite: Suite):
    codes = [400, 401, 402, 403]
    suite.server.fail("POST", *[faults.status(code, "these words") for code in codes])
    suite.write(
        f"import pytest\n@pytest.mark.parametrize('code', {codes})\ndef test_one(anchor_session, code): anchor_session()"
    )
    run = suite.run_here()
    assert (run.status, run.outcomes) == (1, {"failed": 4})
    for code in codes:
        assert f"could not create a session: HTTP {code}: “these words”. " in run.out
    assert not run.section
    assert not run.alive
    assert not run.recorded
    assert suite.server.count("POST") == 4
