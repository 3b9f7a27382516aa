"""What a run expects its next tests to ask for, and what of that is created ahead."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import pytest
from fault_server import FaultServer

from pytest_anchor.broker.broker import Broker
from pytest_anchor.broker.owner import Owner
from pytest_anchor.broker.processes import Process
from pytest_anchor.broker.server import Server
from pytest_anchor.client import Client
from pytest_anchor.errors import AnchorError
from pytest_anchor.launcher import Launcher

BUSY = 10.0  # seconds by which a machine with much to do may be late


class Spy:
    """Waits before and after each test until all that is created ahead is there; counts what was handed out.

    The run's broker is a thread of this very process.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken = 0
        self.brokers: list[Broker] = []
        give = Owner._give

        def count(owner: Owner, *given: Any) -> None:
            self.taken += 1
            give(owner, *given)

        def start(client: Client, listener: Any, generation: int, key: str, identity: list[int]) -> None:
            own = socket.socket(fileno=os.dup(listener.fileno()))
            server = Server(client.settings._replace(api_key=key), own, generation, identity)
            self.brokers.append(server._broker)
            starter = Process(client.settings.owner, os.getpid())
            threading.Thread(target=server.serve, args=(starter,), daemon=True).start()

        monkeypatch.setattr(Owner, "_give", count)
        monkeypatch.setattr(Launcher, "_spawn", start)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self):
        self.wait()
        yield
        self.wait()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self):
        yield
        self.wait()

    def wait(self):
        deadline = time.monotonic() + BUSY
        for owner in [owner for broker in self.brokers for owner in broker._owners.values()]:
            while owner._prefetch is not None and not all(one.done for one in owner._prefetch._ahead):
                assert time.monotonic() < deadline
                time.sleep(0.005)


@pytest.fixture
def predict(pytester: pytest.Pytester, server: FaultServer, monkeypatch: pytest.MonkeyPatch):
    """Run files of tests with ``--anchor-prefetch=2``; count the created, the handed out and the unused."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)

    def predict(files: dict[str, str], *args: str) -> tuple[int, int, int]:
        spy = Spy(monkeypatch)
        for name, text in files.items():
            path = pytester.path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"import pytest\n{text}")
        options = ["-p", "pytest_anchor", "-o", "anchor_reaper=off", "--anchor-prefetch=2", "--import-mode=importlib"]
        strict = ["-W", "error", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        result = pytester.runpytest_inprocess(*options, *strict, *args, plugins=[spy])
        assert len(spy.brokers) == 1
        assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
        assert not server.alive
        assert server.count("DELETE") == len(server.sessions), "one was ended twice, or not asked to end"
        section = result.stdout.str().partition(" anchor ====")[2]
        numbers = [word for word in section.split(",") if "prefetched" in word]
        unused = int(numbers[0].split()[-2]) if numbers else 0
        created = server.count("POST")
        assert f"{created} sessions created: " in section
        return created, spy.taken, unused

    return predict


def cases(names: str, body: str = "anchor_session()", fixtures: str = "anchor_session") -> str:
    return "".join(f"def test_{name}({fixtures}): {body}\n" for name in names)


DEFAULTS = "@pytest.fixture(scope='{0}')\ndef anchor_session_defaults({2}): return {{'browser': {{'x': {1}}}}}\n"
OTHER_CALL = "anchor_session(browser={'y': 1})"


@pytest.mark.parametrize(
    ("files", "args", "counts"),
    [
        ({"test_a.py": cases("abcd")}, "", (4, 3, 0)),
        ({"test_a.py": cases("a") + "@pytest.mark.anchor(browser={'x': 1})\n" + cases("bcd")}, "", (4, 3, 0)),
        (
            {
                "test_a.py": cases("ab"),
                "test_b.py": "pytestmark = pytest.mark.anchor(browser={'x': 1})\n" + cases("abc"),
            },
            "",
            (5, 4, 0),
        ),
        (
            {
                "test_a.py": "import asyncio\n"
                + cases("abc", "asyncio.run(async_anchor_session())", "async_anchor_session")
            },
            "",
            (3, 2, 0),
        ),
        (
            {
                "test_a.py": "@pytest.fixture\ndef page(anchor_session): return anchor_session()\n"
                + cases("abc", "pass", "page")
            },
            "",
            (3, 2, 0),
        ),
        (
            {
                "a/conftest.py": DEFAULTS.format("session", 1, ""),
                "a/test_a.py": cases("abc"),
                "b/conftest.py": DEFAULTS.format("session", 2, ""),
                "b/test_b.py": cases("abc"),
            },
            "",
            (6, 4, 0),
        ),
        (
            {
                "conftest.py": DEFAULTS.format("module", "request.module.X", "request"),
                "test_a.py": "X = 1\n" + cases("abc"),
                "test_b.py": "X = 2\n" + cases("abc"),
            },
            "",
            (6, 4, 0),
        ),
        ({"conftest.py": DEFAULTS.format("function", 1, ""), "test_a.py": cases("abc")}, "", (3, 0, 0)),
        ({"conftest.py": DEFAULTS.format("class", 1, ""), "test_a.py": cases("abc")}, "", (3, 0, 0)),
        (
            {
                "conftest.py": DEFAULTS.format("session", "request.param", "request").replace(
                    "scope=", "params=[1, 2], scope="
                ),
                "test_a.py": cases("ab"),
            },
            "",
            (4, 0, 0),
        ),
        (
            {
                "conftest.py": "@pytest.fixture(scope='session', params=[1, 2])\ndef region(request): return request.param\n"
                + DEFAULTS.format("session", "region", "region"),
                "test_a.py": cases("ab"),
            },
            "",
            (4, 0, 0),
        ),
        (
            {
                "test_a.py": cases("a")
                + "".join(
                    f"@pytest.mark.{mark}\n{cases(name)}"
                    for name, mark in zip(
                        "bcdefg",
                        [
                            "skip",
                            "skipif(True, reason='')",
                            "skipif(condition=1, reason='')",
                            "skipif(False, True, reason='')",
                            "xfail(run=False)",
                            "xfail(True, reason='', run=False)",
                        ],
                        strict=True,
                    )
                )
                + cases("h")
            },
            "",
            (2, 1, 0),
        ),
        (
            {
                "test_a.py": cases("a")
                + "@pytest.mark.xfail(False, reason='', run=False)\n"
                + cases("b")
                + "@pytest.mark.skipif(False, reason='')\n"
                + cases("c")
            },
            "",
            (3, 2, 0),
        ),
        ({"test_a.py": cases("abcdef")}, "-k=test_b or test_e", (2, 1, 0)),
        ({"test_a.py": cases("a") + cases("b", "anchor_session(); assert 0") + cases("cd")}, "-x", (4, 1, 2)),
        ({"test_a.py": cases("ab", "anchor_session(), anchor_session()")}, "", (4, None, 0)),
        ({"test_a.py": cases("a") + cases("b", "pass") + cases("c")}, "", (3, 1, 1)),
        ({"test_a.py": cases("a") + cases("b", "pass", "") * 3 + cases("c")}, "", (2, 1, 0)),
        ({"test_a.py": cases("ab", "request.getfixturevalue('anchor_session')()", "request")}, "", (2, 0, 0)),
        ({"test_a.py": cases("abcdefgh", OTHER_CALL)}, "", (12, 0, 4)),
        (
            {"test_a.py": cases("a") + "@pytest.mark.anchor(browser={'x': {1}})\n" + cases("b") + cases("c")},
            "",
            (2, 1, 0),
        ),
        (
            {
                "test_a.py": "d = {}\nd['x'] = d\n"
                + cases("a")
                + "@pytest.mark.anchor(browser=d)\n"
                + cases("b")
                + cases("c")
            },
            "",
            (2, 1, 0),
        ),
        (
            {
                "test_a.py": cases("a")
                + "class Odd:\n    def __bool__(self): raise OSError\n@pytest.mark.skipif(Odd(), reason='')\n"
                + cases("b")
                + cases("c")
            },
            "",
            (2, 1, 0),
        ),
        (
            {
                "conftest.py": DEFAULTS.format("session", 1, "")
                .replace("browser", "session")
                .replace("'x': 1", "'timeout': {'max_duration': 10 ** 400}"),
                "test_a.py": cases("ab"),
            },
            "",
            (2, 0, 0),
        ),
        (
            {"conftest.py": "def pytest_collection_modifyitems(items): items.reverse()", "test_a.py": cases("abcd")},
            "",
            (4, 3, 0),
        ),
        (
            {
                "conftest.py": "@pytest.hookimpl(tryfirst=True)\ndef pytest_runtestloop(session):\n    order = session.items[::-1]\n    for item, after in zip(order, [*order[1:], None]):\n        item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)\n    return True",
                "test_a.py": cases("abcd"),
            },
            "",
            (4, 3, 0),
        ),
        ({"test_a.py": cases("abc", "module_anchor_session()", "module_anchor_session") + cases("de")}, "", (5, 1, 0)),
        (
            {
                "test_a.py": "@pytest.fixture\ndef page(anchor_session): return anchor_session()\n"
                + cases("abc", "pass", "page")
            },
            "--setup-only",
            (3, 2, 0),
        ),
    ],
    ids=[
        "equal",
        "marker",
        "module marker",
        "asynchronous",
        "fixture",
        "folders",
        "by module",
        "function",
        "class",
        "parametrised",
        "depends",
        "skipped",
        "not skipped",
        "deselected",
        "-x",
        "two",
        "no call",
        "between",
        "dynamic",
        "other call",
        "no JSON",
        "loop",
        "odd condition",
        "overflow",
        "reversed",
        "backwards",
        "wider",
        "setup-only",
    ],
)
def test_what_is_expected(predict, files, args, counts):
    created, taken, unused = predict(files, *[args] * bool(args))
    assert (created, taken if counts[1] is not None else None, unused) == counts


FORKS = """
import os
from pytest_anchor.plugin.state import PLUGIN

def test_a(anchor_session, request):
    anchor_session()
    plugin = request.config.stash[PLUGIN]
    assert len(plugin.upcoming.after(plugin.item)) == 1
    if not (child := os.fork()):
        os._exit(len(plugin.upcoming.after(plugin.item)))
    assert os.waitpid(child, 0)[1] == 0

def test_b(anchor_session): anchor_session()
"""


def test_a_forked_child_expects_nothing(predict):
    assert predict({"test_a.py": FORKS}, "-W", "ignore::DeprecationWarning") == (2, 1, 0)


def test_a_plan_that_cannot_be_made_is_no_failure(predict, monkeypatch):
    request = Client.request

    def fail(client: Client, verb: str, **arguments: Any) -> dict[str, Any]:
        if verb == "plan":
            raise AnchorError("the broker has not answered")
        return request(client, verb, **arguments)

    monkeypatch.setattr(Client, "request", fail)
    assert predict({"test_a.py": cases("ab")}, "-x") == (2, 0, 0)
