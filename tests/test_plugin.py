"""The contract of options, fixtures and marker, by pytest runs within this process."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import fault_server as faults
import pytest
from fault_server import KEY, FaultServer

Runner = Callable[..., pytest.RunResult]


@pytest.fixture
def bodies(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was sent to create sessions."""
    sent: list[dict[str, Any]] = []
    act = server._act

    def keep(method: str, path: str, query: dict[str, list[str]], body: Any) -> faults.Answer:
        if method == "POST":
            sent.append(body)
        return act(method, path, query, body)

    monkeypatch.setattr(server, "_act", keep)
    return sent


@pytest.fixture
def run(pytester: pytest.Pytester, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run pytest in this process on a test file, with the plugin and the server's key and URL."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)

    def run(test: str = "", *args: str) -> pytest.RunResult:
        if test:
            pytester.makepyfile(test)
        # This process has imported the plugin before pytest could rewrite its assertions, of which it has none.
        strict = ["-W", "error", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        # What such a run leaves open is left open, and its server is soon gone.
        unwatched = ["-o", "anchor_reaper=off"]
        return pytester.runpytest_inprocess("-p", "pytest_anchor", *strict, *unwatched, *args, no_reraise_ctrlc=True)

    return run


# The factories.


def test_a_handle(run: Runner, server: FaultServer):
    run(
        f"""
        import datetime
        import pytest
        import pytest_anchor

        def test_it(anchor_session):
            assert isinstance(anchor_session, pytest_anchor.AnchorSessionFactory)
            session = anchor_session()
            assert isinstance(session, pytest_anchor.AnchorSession)
            assert session.cdp_url.endswith(f"?apiKey={KEY}&sessionId={{session.id}}")
            assert session.live_view_url == "{server.url}/live/" + session.id
            age = datetime.datetime.now(datetime.timezone.utc) - session.created_at
            assert datetime.timedelta() <= age < datetime.timedelta(seconds=20)
            assert repr(session) == f"<AnchorSession {{session.id}} open>"
            session.end()
            session.end()
            assert session.ended
            assert repr(session) == f"<AnchorSession {{session.id}} ended>"
            with anchor_session() as one, pytest.raises(KeyError), anchor_session() as other:
                assert not one.ended
                raise KeyError
            assert one.ended and other.ended
        """
    ).assert_outcomes(passed=1)
    assert server.count("DELETE") == 3
    assert not server.alive


def test_each_factory_ends_its_sessions_with_its_scope(run: Runner, pytester: pytest.Pytester, server: FaultServer):
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture
        def one_of_each(anchor_session, class_anchor_session, module_anchor_session, package_anchor_session,
                        session_anchor_session):
            for factory in (anchor_session, class_anchor_session, module_anchor_session, package_anchor_session,
                            session_anchor_session):
                factory()
        """
    )
    alive: list[int] = []

    class Count:
        """Counts what is alive before each test."""

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_setup(self) -> None:
            alive.append(len(server.alive))

    test = "class TestOne:\n def test_a(self, one_of_each): pass\n def test_b(self): pass\ndef test_c(): pass\n"
    pytester.makepyfile(**{"a/__init__": "", "a/test_one": test, "a/test_two": "def test_d(): pass"})
    pytester.makepyfile(test_z="def test_e(): pass")
    result = pytester.inline_run("-p", "pytest_anchor", "--anchor-reaper=off", "a", "test_z.py", plugins=[Count()])
    assert result.ret == 0
    # Before each: function's, class's and module's are gone. pytest keeps a plugin's package scope for the whole run.
    assert alive == [0, 4, 3, 2, 2]
    assert not server.alive


def test_config_is_merged_and_sent(run: Runner, pytester: pytest.Pytester, bodies: list[dict[str, Any]]):
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session")
        def anchor_session_defaults():
            return {"session": {"tags": ["suite"], "timeout": {"idle_timeout": 1, "max_duration": 1}},
                    "browser": {"headless": {"active": False}, "viewport": {"width": 1, "height": 1}}}
        """
    )
    run(
        """
        import pytest

        pytestmark = pytest.mark.anchor(session={"tags": ["module"], "timeout": {"max_duration": 2}})

        @pytest.mark.anchor(browser={"viewport": {"width": 2}})
        class TestIt:
            @pytest.mark.anchor(session={"timeout": {"max_duration": 3}}, identities=[{"id": "x"}])
            def test_a(self, anchor_session, module_anchor_session):
                anchor_session(session={"tags": ["call", "suite"], "recording": True}, browser={"viewport": {"width": 4}})
                module_anchor_session()
                anchor_session(integrations=[])
        """
    ).assert_outcomes(passed=1)
    call, module, plain = bodies
    timeout = {"idle_timeout": 1, "max_duration": 3}
    headless = {"active": False}
    tags = [body["session"].pop("tags") for body in bodies]
    assert call == {
        "session": {"timeout": timeout, "recording": True},
        "browser": {"headless": headless, "viewport": {"width": 4, "height": 1}},
        "identities": [{"id": "x"}],
    }
    assert module == {
        "session": {"timeout": {"idle_timeout": 1, "max_duration": 2}},
        "browser": {"headless": headless, "viewport": {"width": 1, "height": 1}},
    }
    assert plain == {
        "session": {"timeout": timeout},
        "browser": {"headless": headless, "viewport": {"width": 2, "height": 1}},
        "identities": [{"id": "x"}],
        "integrations": [],
    }
    assert [own[-2:] for own in tags] == [
        ["pytest-anchor:test=test_config_is_merged_and_sent.py::TestIt::test_a", "pytest-anchor:owner=main"]
    ] * 3
    tags = [own[:-2] for own in tags]
    assert [own[:-3] for own in tags] == [["suite", "module", "call"], ["suite", "module"], ["suite", "module"]]
    assert len({own[-2] for own in tags}) == 1  # the run
    assert len({own[-1] for own in tags}) == 3  # the creation
    for own in tags:
        assert own[-3] == "pytest-anchor"
        assert own[-2].startswith("pytest-anchor:run=")
        assert own[-1].startswith("pytest-anchor:new=")
        assert "," not in "".join(own)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (
            "def test_a(anchor_session): anchor_session(headless=True)",
            "*TypeError: anchor_session() got*'headless'*{}*",
        ),
        ("def test_a(anchor_session): anchor_session({})", "*TypeError:*positional*"),
        ("def test_a(anchor_session): anchor_session(session={'x': object()})", "*TypeError:*JSON serializable*"),
        ("def test_a(anchor_session): anchor_session(session={'x': float('nan')})", "*ValueError:*JSON compliant*"),
        (
            "def test_a(anchor_session): anchor_session(session={'tags': 'one'})",
            "*AnchorConfigError: 'session' must be*",
        ),
        (
            "import pytest\n@pytest.mark.anchor(bowser={})\ndef test_a(anchor_session): pass",
            "*TypeError: the anchor marker got*'bowser'*{}*",
        ),
        (
            "import pytest\n@pytest.mark.anchor({})\ndef test_a(anchor_session): pass",
            "*TypeError: the anchor marker*{}*",
        ),
        (
            "import pytest\n@pytest.fixture(scope='session')\ndef anchor_session_defaults(): return {'tags': []}\n"
            "def test_a(anchor_session): pass",
            "*TypeError: anchor_session_defaults got*'tags'*{}*",
        ),
        (
            "import pytest\n@pytest.fixture(scope='session')\ndef anchor_session_defaults(): return 7\n"
            "def test_a(anchor_session): pass",
            "*TypeError: anchor_session_defaults must return a mapping, not int*",
        ),
    ],
    ids=[
        "keyword",
        "positional",
        "no-json",
        "nan",
        "tags",
        "marker",
        "marker-positional",
        "defaults",
        "defaults-no-mapping",
    ],
)
def test_a_mistake_is_named_and_creates_nothing(
    run: Runner, pytester: pytest.Pytester, server: FaultServer, test: str, message: str
):
    result = run(test)
    assert result.ret == 1
    result.stdout.fnmatch_lines([message.replace("{}", "session, browser, integrations, identities")])
    result.stdout.no_fnmatch_line("*.py:*: in *")  # the traceback shows the suite's own lines, not those below them
    assert not server.requests
    assert not server.asked_for_cap
    assert not (pytester.path / ".pytest_anchor").exists()


# Settings.


@pytest.mark.parametrize(
    ("option", "env", "ini", "wins"),
    [
        (True, True, True, "option"),
        (False, True, True, "env"),
        (False, False, True, "ini"),
    ],
)
def test_the_order_of_settings(
    run: Runner, pytester: pytest.Pytester, server: FaultServer, monkeypatch: pytest.MonkeyPatch,
    option: bool, env: bool, ini: bool, wins: str,
):  # fmt: skip
    nowhere = "http://127.0.0.1:9/nowhere"
    monkeypatch.delenv("ANCHORBROWSER_BASE_URL")
    if env:
        monkeypatch.setenv("ANCHORBROWSER_BASE_URL", server.url if wins == "env" else nowhere)
    pytester.makeini(f"[pytest]\nanchor_base_url = {server.url if wins == 'ini' else nowhere}\n")
    args = ["--anchor-base-url", f"{server.url}/"] if option else []
    run("def test_a(anchor_session): anchor_session()", *args).assert_outcomes(passed=1)
    assert server.count("POST") == 1


def test_an_api_in_the_environment_wins_over_a_local_one_in_the_ini_file(
    run: Runner, pytester: pytest.Pytester, server: FaultServer
):
    pytester.makeini("[pytest]\nanchor_local = true\n")
    run("def test_a(anchor_session): anchor_session()").assert_outcomes(passed=1)
    assert server.count("POST") == 1


@pytest.mark.slow
def test_a_chromium_in_the_environment_wins_over_one_in_the_ini_file(
    run: Runner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTEST_ANCHOR_CHROMIUM", "/from/the/environment")
    pytester.makeini("[pytest]\nanchor_chromium = /from/the/ini/file\n")
    result = run("def test_a(anchor_session): anchor_session()", "--anchor-local")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the Chromium that was named, /from/the/environment, is no program*"])


def test_the_second_name_of_the_key(run: Runner, server: FaultServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANCHORBROWSER_API_KEY", "")
    monkeypatch.setenv("ANCHOR_API_KEY", KEY)
    run("def test_a(anchor_session): anchor_session()").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("args", "ini", "ci", "run_id"),
    [
        (["--anchor-run-id=mine"], "theirs", "7", "mine"),
        ([], "theirs", "7", "theirs"),
        ([], "", "7", "github-7"),
        ([], "", "", "[0-9a-f]{16}"),
    ],
    ids=["option", "ini", "ci", "random"],
)
def test_the_run_id_is_in_the_tags_and_on_record(
    run: Runner, pytester: pytest.Pytester, server: FaultServer, monkeypatch: pytest.MonkeyPatch,
    bodies: list[dict[str, Any]], args: list[str], ini: str, ci: str, run_id: str,
):  # fmt: skip
    pytester.makeini(f"[pytest]\nanchor_run_id = {ini}\n")
    monkeypatch.setenv("GITHUB_RUN_ID", ci)
    server.fail_always("DELETE", faults.status(403))
    run("def test_a(anchor_session): anchor_session(); anchor_session()", *args)
    told = {
        tag.removeprefix("pytest-anchor:run=") for body in bodies for tag in body["session"]["tags"] if ":run=" in tag
    }
    (told_id,) = told
    assert re.fullmatch(run_id, told_id)
    (journal,) = pytester.path.glob(".pytest_anchor/*/journal.jsonl")
    assert f'"run_id":"{told_id}"' in journal.read_text()
    # The folder has a name of its own: shards that share a run id may share a registry as well.
    assert re.fullmatch("[0-9a-f]{16}", journal.parent.name)
    assert (journal.parent.name == told_id) is (run_id == "[0-9a-f]{16}")


@pytest.mark.parametrize("args", [["-o", "anchor_reaper=off"], ["-o", "anchor_reaper=on", "--anchor-reaper=off"]])
def test_the_reaper_can_be_switched_off(run: Runner, pytester: pytest.Pytester, server: FaultServer, args: list[str]):
    server.fail_always("DELETE", faults.status(403))
    result = run("def test_a(anchor_session): anchor_session()", *args)
    (journal,) = pytester.path.glob(".pytest_anchor/*/journal.jsonl")
    assert [path.name for path in journal.parent.glob("reaper.*")] == []
    result.stdout.fnmatch_lines(
        ["the next run here tries again; so does: python -m pytest_anchor sweep --base-url http:*--registry *"]
    )


@pytest.mark.parametrize("how", ["option", "ini"])
def test_a_lost_creation_is_retried_as_often_as_is_said(
    run: Runner, pytester: pytest.Pytester, server: FaultServer, how: str
):
    server.fail_always("POST", faults.status(500))
    if how == "ini":
        pytester.makeini("[pytest]\nanchor_create_retries = 1\n")
    args = ["--anchor-create-retries=0"] if how == "option" else []
    run("def test_a(anchor_session): anchor_session()", "--anchor-sweep-timeout=0.5", *args).assert_outcomes(failed=1)
    assert server.count("POST") == (1 if how == "option" else 2)


@pytest.mark.parametrize("how", ["option", "ini"])
def test_the_users_home_may_be_named_by_a_tilde(
    run: Runner, pytester: pytest.Pytester, server: FaultServer, monkeypatch: pytest.MonkeyPatch, how: str
):
    monkeypatch.setenv("HOME", str(pytester.mkdir("home")))
    server.fail_always("DELETE", faults.status(403))
    if how == "ini":
        pytester.makeini("[pytest]\nanchor_registry = ~/records\n")
    args = ["--anchor-registry=~/records"] if how == "option" else []
    run("def test_a(anchor_session): anchor_session()", "--anchor-sweep-timeout=0.1", *args)
    assert (pytester.path / "home" / "records").is_dir()
    assert not (pytester.path / "~").exists()


def test_a_key_that_a_fixture_sets_is_used(run: Runner, server: FaultServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANCHORBROWSER_API_KEY", "")
    run(
        f"""
        import os, pytest

        @pytest.fixture(scope="session", autouse=True)
        def key():
            os.environ["ANCHOR_API_KEY"] = {KEY!r}
            yield
            del os.environ["ANCHOR_API_KEY"]

        def test_a(anchor_session): anchor_session()
        """
    ).assert_outcomes(passed=1)
    assert server.count("POST") == 1
    assert not server.alive


@pytest.mark.parametrize("how", ["option", "ini"])
def test_the_registry_option(run: Runner, pytester: pytest.Pytester, server: FaultServer, how: str):
    server.fail_always("DELETE", faults.status(403))
    below = pytester.mkdir("below")
    if how == "ini":
        pytester.makeini("[pytest]\nanchor_registry = records\nanchor_on_leak = warn\nanchor_sweep_timeout = 0.1\n")
        args = []
    else:
        pytester.makeini("[pytest]\nanchor_registry = elsewhere\n")
        args = ["--anchor-registry=records", "--anchor-on-leak=warn", "--anchor-sweep-timeout=1"]
    pytester.makepyfile(**{"below/test_a": "def test_a(anchor_session): anchor_session()"})
    assert run("", "below/test_a.py", *args).ret == 0
    assert not (pytester.path / ".pytest_anchor").exists()
    assert below.is_dir()
    records = pytester.path / "records"
    assert (records / ".gitignore").read_text().splitlines()[-1] == "*"
    (folder,) = (one for one in records.iterdir() if one.is_dir())
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events][:4] == ["run", "intent", "created", "failed"]
    assert events[1]["test"] == "below/test_a.py::test_a"
    assert events[1]["owner"] == "main"
    assert events[2]["id"] == server.alive[0]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--anchor-on-leak=ignore"], "--anchor-on-leak takes fail or warn, not 'ignore'"),
        (["-o", "anchor_on_leak=ignore"], "takes fail or warn, not 'ignore'"),
        (["--anchor-sweep-timeout=soon"], "--anchor-sweep-timeout takes a number of seconds above 0, not 'soon'"),
        (["--anchor-sweep-timeout=-1"], "not '-1'"),
        (["--anchor-sweep-timeout=nan"], "not 'nan'"),
        (["--anchor-base-url=ftp://x"], "the base URL 'ftp://x' is not an http:// or https:// URL"),
        (["--anchor-base-url=http://example.com"], "would send the API key in the clear"),
        (["-o", "anchor_base_url=http://example.com"], "would send the API key in the clear"),
        (["--anchor-base-url=https://user:secret@example.com"], "no user, query or fragment"),
        (["--anchor-reaper=maybe"], "--anchor-reaper takes on or off, not 'maybe'"),
        (["-o", "anchor_reaper=1"], "--anchor-reaper takes on or off, not '1'"),
        (["--anchor-run-id=a,b"], "the run id 'a,b' must be 1 to 100 letters, digits"),
        (["-o", "anchor_run_id=a b"], "the run id 'a b' must be 1 to 100 letters, digits"),
        (["--anchor-create-timeout=0"], "--anchor-create-timeout takes a number of seconds above 0, not '0'"),
        (["--anchor-max-sessions=0"], "--anchor-max-sessions takes auto, off or a whole number above 0, not '0'"),
        (["-o", "anchor_max_sessions=many"], "takes auto, off or a whole number above 0, not 'many'"),
        (["--anchor-prefetch=-1"], "--anchor-prefetch takes a whole number from 0 to 100, not '-1'"),
        (["-o", "anchor_prefetch=1.5"], "takes a whole number from 0 to 100, not '1.5'"),
        (["--anchor-create-retries=-1"], "--anchor-create-retries takes a whole number from 0 to 10, not '-1'"),
        (["-o", "anchor_create_retries=11"], "takes a whole number from 0 to 10, not '11'"),
        (["--anchor-end=later"], "--anchor-end takes inline or background, not 'later'"),
        (["--anchor-sweep-at-once=0"], "--anchor-sweep-at-once takes a whole number from 1 to 256, not '0'"),
        (["--anchor-local", "--anchor-base-url=https://example.com"], "exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(run: Runner, server: FaultServer, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str):
    monkeypatch.delenv("ANCHORBROWSER_BASE_URL")
    result = run("def test_a(anchor_session): pass", *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = (line for line in result.errlines if line.startswith("ERROR: "))
    assert message in line
    assert "secret" not in line
    assert not result.outlines


@pytest.mark.parametrize("key", ["", " " + KEY, KEY + "\n", "schlüssel"])
def test_a_key_that_cannot_be_used(run: Runner, pytester: pytest.Pytester, server: FaultServer, monkeypatch, key: str):
    monkeypatch.setenv("ANCHORBROWSER_API_KEY", key)
    result = run("def test_a(): pass\ndef test_b(anchor_session): anchor_session()")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*AnchorConfigError:*ANCHORBROWSER_API_KEY*--anchor-local*"])
    assert key.strip() == "" or key.strip() not in result.stdout.str().replace("ANCHORBROWSER_API_KEY", "")
    assert not server.requests
    assert not (pytester.path / ".pytest_anchor").exists()


# The report.


@pytest.mark.parametrize(
    ("test", "args", "status"),
    [
        ("", ["--anchor-on-leak=fail"], pytest.ExitCode.TESTS_FAILED),
        ("", [], pytest.ExitCode.TESTS_FAILED),
        ("", ["--anchor-on-leak=warn"], pytest.ExitCode.OK),
        ("; assert 0", ["--anchor-on-leak=warn"], pytest.ExitCode.TESTS_FAILED),
        ("; import pytest; pytest.exit('x', 9)", [], 9),
    ],
)
def test_a_leak_and_the_exit_status(run: Runner, server: FaultServer, test: str, args: list[str], status: int):
    server.fail_always("DELETE", faults.status(403))
    result = run(f"def test_a(anchor_session): anchor_session(){test}", "--anchor-sweep-timeout=1", *args)
    assert result.ret == status
    said = result.stdout.str() + result.stderr.str()
    assert said.count("1 session created: 1 leaked") == 1


def test_a_401_and_a_500_read_differently(run: Runner, server: FaultServer):
    # Both of one run: the first session's end meets a 500 each time, the second's a 401 that lasts.
    def fault(handler: faults._Handler, act: Callable[[], faults.Answer]) -> faults.Answer:
        first = handler.path.endswith(server.alive[0])
        return faults.error(500, "we broke") if first else faults.error(401)

    server.fail_always("DELETE", fault)
    server.fail_always("GET", faults.status(401))
    result = run(
        "import pytest\n@pytest.mark.parametrize('n', [1, 2])\ndef test_a(anchor_session, n): anchor_session()",
        "--anchor-sweep-timeout=5",
    )
    first, second = server.alive
    result.stdout.fnmatch_lines(
        [
            "*= anchor =*",
            "2 sessions created: 2 leaked",
            f"LEAKED {first} of *::test_a?1?",
            "  HTTP 500: “we broke” (tried * times). The trouble is at the API's side*",
            f"  end it by hand: python -m pytest_anchor end --base-url {server.url} {first}",
            f"LEAKED {second} of *::test_a?2?",
            "  HTTP 401: “Invalid API Key*” (tried * times). The API refuses the key: check ANCHORBROWSER_API_KEY.",
        ]
    )


def test_verbose_names_every_session(run: Runner, server: FaultServer):
    result = run("def test_a(anchor_session): anchor_session(); anchor_session().end()", "-v")
    first, second = server.sessions
    result.stdout.fnmatch_lines(
        [
            "2 sessions created: 1 ended by the tests, 1 at teardown",
            f"{first} of *::test_a: at teardown",
            f"{second} of *::test_a: ended by the tests",
        ]
    )


# What pytest says of us.


def test_help(run: Runner):
    result = run("", "--help")
    text = result.stdout.str()
    flat = " ".join(text.split())
    assert "Anchor Browser sessions (pytest-anchor); the API key is read from ANCHORBROWSER_API_KEY" in flat
    sweeps = ("on-leak", "sweep-timeout", "sweep-at-once", "reaper", "run-id")
    plan = ("create-timeout", "create-retries", "max-sessions", "prefetch", "end")
    for name in ("base-url", "registry", "local", "chromium", *sweeps, *plan):
        assert f"--anchor-{name}" in text
        ini = f"anchor_{name.replace('-', '_')}"
        assert f"\n  {ini} (" in text


def test_fixtures_and_markers(run: Runner):
    fixtures = run("", "--fixtures").stdout.str()
    for scope in ("class", "module", "package", "session"):
        assert f"{scope}_anchor_session [{scope} scope] -- " in fixtures
    assert "\nanchor_session -- " in fixtures
    assert "\nanchor_session_defaults [session scope] -- " in fixtures
    ours = fixtures.partition("fixtures defined from pytest_anchor.plugin")[2]
    assert "no docstring available" not in ours
    markers = run("", "--markers").stdout.str()
    assert "@pytest.mark.anchor(session=…, browser=…, integrations=…, identities=…): configuration" in markers


def test_strict_markers(run: Runner):
    test = "import pytest\n@pytest.mark.anchor\ndef test_a(): pass"
    run(test, "--strict-markers", "--strict-config").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("options", "early", "at_all"),
    [([], True, True), (["-k", "first"], False, True), (["--collect-only"], False, False)],
)
def test_the_broker_starts_while_tests_are_collected(
    run: Runner, pytester: pytest.Pytester, options: list[str], early: bool, at_all: bool
):
    """Afterwards where it is not known yet whether a test will be selected that needs it."""
    pytester.makeconftest(
        """
        from pytest_anchor.plugin.state import PLUGIN

        def pytest_collectstart(collector):
            if collector.name == "test_second.py":
                print("\\nearly:", collector.config.stash[PLUGIN].client.is_connected)

        def pytest_runtestloop(session):
            print("\\nat all:", session.config.stash[PLUGIN].client.is_connected)
        """
    )
    pytester.makepyfile(
        test_first="def test_first(anchor_session): anchor_session()", test_second="def test_second(): pass"
    )
    result = run("", "-s", *options)
    assert result.ret == 0
    result.stdout.fnmatch_lines([f"early: {early}", f"at all: {at_all}"])
