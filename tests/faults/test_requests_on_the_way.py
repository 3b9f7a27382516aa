"""What happens to a request between this machine and the API: repeated, never sent, forgotten, slow to begin."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import fault_server as faults
import pytest
from fault_server import FaultServer
from real_runs import Suite, environment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

ONE = "def test_a(anchor_session):\n    anchor_session().end()\n"


def twice(_handler: object, act: Callable[[], faults.Answer]) -> faults.Answer:
    """A proxy on the way has repeated the request: the first answer is nobody's."""
    act()
    return act()


def test_a_creation_that_was_repeated_is_ended_twice(suite: Suite):
    suite.server.fail("POST", twice)
    suite.write(ONE)
    run = suite.run_here()
    assert (run.status, run.outcomes) == (0, {"passed": 1})
    assert len(suite.server.sessions) == len(suite.strangers) + 2
    assert not run.alive
    assert "2 sessions created: 1 ended by the tests, 1 by the sweep" in run.section


def test_a_creation_that_was_repeated_is_ended_twice_after_a_kill(suite: Suite):
    suite.server.fail("POST", twice)
    suite.write("import os\ndef test_a(anchor_session):\n    anchor_session().end()\n    os.kill(os.getpid(), 9)\n")
    suite.run(reaper=True)
    suite.wait_for_quiet()
    assert not suite.alive


def test_the_last_look_costs_one_request_and_none_where_nothing_was_created(suite: Suite):
    suite.write(ONE + ONE.replace("test_a", "test_b"))
    suite.run_here()
    assert suite.server.count("GET") == 1
    suite.server.fail_always("POST", faults.status(400))
    run = suite.run_here()
    assert run.outcomes == {"failed": 2}
    assert suite.server.count("GET") == 1


def test_a_last_look_that_fails_is_told_and_fails_no_run(suite: Suite):
    suite.server.fail_always("GET", faults.status(403, "these words"))
    suite.write(ONE)
    run = suite.run_here()
    assert (run.status, run.outcomes) == (0, {"passed": 1})
    assert "the sweep is incomplete: could not list the run's sessions: HTTP 403" in run.section


# What was never sent.


class Refuses:
    """A proxy, or a server, that answers the same to everything."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                connection.recv(4096)
                connection.sendall(self._answer)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def refuses() -> Iterator[Refuses]:
    refuses = Refuses(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
    yield refuses
    refuses.close()


UNSENT = {
    "a proxy's 407": (
        {"HTTPS_PROXY": "http://user:hunter2@ADDRESS"},
        "Tunnel connection failed: 407",
        "by the proxy ADDRESS",
    ),
    "a proxy that is not there": (
        {"HTTPS_PROXY": "http://user:hunter2@127.0.0.1:9"},
        "refused",
        "by the proxy 127.0.0.1:9",
    ),
    "a proxy that nobody can read": ({"HTTPS_PROXY": "http://user:hunter2@:x"}, "proxy|parse", "anchor.example"),
    "certificates that are not there": ({"REQUESTS_CA_BUNDLE": "nowhere.pem"}, "CA certificate bundle", "nowhere.pem"),
    "https to a plain port": ({"ANCHORBROWSER_BASE_URL": "https://ADDRESS"}, "SSL|TLS|record layer", "ADDRESS"),
    "a name that nobody knows": (
        {"ANCHORBROWSER_BASE_URL": "https://anchor.invalid"},
        "resol|not known",
        "anchor.invalid",
    ),
}


@pytest.mark.parametrize("case", UNSENT)
def test_what_was_never_sent_is_a_refusal_that_names_what_stood_in_the_way(suite: Suite, refuses: Refuses, case: str):
    changes, says, names = UNSENT[case]
    env = {"ANCHORBROWSER_API_KEY": faults.KEY, "ANCHORBROWSER_BASE_URL": "https://anchor.example", **changes}
    env = {name: value.replace("ADDRESS", refuses.address) for name, value in env.items()}
    suite.write("def test_a(anchor_session):\n    anchor_session()\n")
    begun = time.monotonic()
    run = suite.run_here(env=environment(**env))
    assert (run.status, run.outcomes) == (1, {"failed": 1})
    assert re.search(f"AnchorAPIError: could not create a session: .*({says})", run.out), run.out
    assert names.replace("ADDRESS", refuses.address) in run.out
    assert "hunter2" not in run.out + run.err
    assert not run.section, "nothing may exist, so there is nothing to tell"
    assert not run.recorded
    assert time.monotonic() - begun < 50, "a sweep takes 60 s"


# A connection that was idle.


def test_a_creation_uses_no_connection_that_a_router_may_have_forgotten(suite: Suite, server: FaultServer):
    suite.write(
        "import time\n"
        "def test_a(anchor_session):\n    anchor_session().end()\n    time.sleep(5.5)\n    anchor_session().end()\n"
    )
    before = server.connections
    run = suite.run_here()
    assert run.outcomes == {"passed": 1}
    assert server.connections - before >= 2


# A resolver that takes its time holds the broker's thread, and nobody else.

SLOW_RESOLVER = """
import socket, time
resolve = socket.getaddrinfo
calls = []

def slow(*args, **kwargs):
    calls.append(1)
    if len(calls) > 1:
        time.sleep(12)
    return resolve(*args, **kwargs)

socket.getaddrinfo = slow
"""


def closing(_handler: object, act: Callable[[], faults.Answer]) -> faults.Answer:
    """The true answer, after which the next request needs another connection."""
    status, headers, body = act()
    return status, {**headers, "Connection": "close"}, body


def test_a_slow_resolver_holds_no_teardown_beyond_its_budget(suite: Suite, server: FaultServer):
    # It is the broker that is slow: by a sitecustomize of its own.
    folder = suite.folder / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\nif '-c' in sys.orig_argv:\n" + "".join(f"    {line}\n" for line in SLOW_RESOLVER.splitlines())
    )
    server.fail_always("POST", closing)
    suite.write("def test_a(anchor_session):\n    anchor_session()\n")
    env = environment(**server.env)
    env["PYTHONPATH"] = f"{folder}:{env['PYTHONPATH']}"
    run = suite.run("--durations=3", "--durations-min=0", "--anchor-max-sessions=off", env=env)
    teardown = re.search(r"([\d.]+)s teardown", run.out)
    assert teardown is not None
    assert float(teardown[1]) < 7
    assert not run.alive
