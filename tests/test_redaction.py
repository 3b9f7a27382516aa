"""The key in what tests print, compare, raise and record: what is cleaned of it, and where. Also what is left alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import quote

import pytest
from fault_server import KEY, FaultServer

from pytest_anchor.client import Client
from pytest_anchor.plugin.redaction import clean, clean_exception, clean_report, clean_tree, clean_value
from pytest_anchor.plugin.state import Plugin
from pytest_anchor.session import _SecretURL
from pytest_anchor.settings import Settings

URL = f"ws://h/?apiKey={KEY}&sessionId=1"
CLEAN = "ws://h/?apiKey=***&sessionId=1"


class Point(NamedTuple):
    x: object


def test_a_key_is_taken_out_in_every_form_that_a_url_or_a_repr_gives_it():
    key = "a/b+c d\\e'f~ü"
    for form in (key, quote(key), quote(key, safe=""), repr(key)[1:-1]):
        assert clean(f"x{form}y{form}z", key) == "x***y***z"
    assert clean("nothing", key) == "nothing"


def test_the_key_is_taken_out_where_a_test_has_replaced_what_makes_urls(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("urllib.parse.quote", lambda *_args, **_options: "")
    assert clean("x", "a/b") == "x"


def test_what_is_said_at_the_end_of_a_run_is_cleaned(settings: Settings, pytestconfig: pytest.Config):
    plugin = Plugin(Client(settings), pytestconfig, is_worker=False)
    for _ in range(2):
        plugin.remark(f"the launch option args='{URL}' has no meaning")
    assert list(plugin.remarks) == [f"the launch option args='{CLEAN}' has no meaning"]


@pytest.mark.parametrize(
    ("value", "cleaned"),
    [
        (URL, CLEAN),
        (URL.encode(), CLEAN.encode()),
        (b"\xff" + KEY.encode(), b"\xff***"),
        ([URL, 1], [CLEAN, 1]),
        ((URL, [URL]), (CLEAN, [CLEAN])),
        ({URL}, {CLEAN}),
        (frozenset([URL]), frozenset([CLEAN])),
        ({URL: {"x": (URL,)}}, {CLEAN: {"x": (CLEAN,)}}),
        (_SecretURL(URL), CLEAN),
    ],
    ids=lambda value: type(value).__name__,
)
def test_text_is_cleaned_in_whatever_holds_it(value, cleaned):
    result = clean_value(value, KEY)
    assert result == cleaned
    assert type(result) is type(cleaned)


@pytest.mark.parametrize("value", [None, 1, 1.5, True, "text", b"bytes", [], (), {}, [1, [2]], {"a": None}, {1}])
def test_what_holds_no_key_stays_equal(value):
    assert clean_value(value, KEY) == value
    assert type(clean_value(value, KEY)) is type(value)


def test_a_url_without_a_key_becomes_plain_text_which_is_all_that_xdist_sends():
    assert type(clean_value(_SecretURL("http://live"), KEY)) is str


def test_a_container_that_holds_itself_comes_to_an_end():
    loop = [URL]
    loop.append(loop)
    assert clean_value(loop, KEY)[0] == CLEAN


# exceptions


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - whatever it is
        return caught


def test_arguments_and_notes_are_cleaned():
    error = raised(ValueError(URL, [URL], 7))
    error.__notes__ = [f"see {URL}"]
    clean_exception(error, KEY)
    assert error.args == (CLEAN, [CLEAN], 7)
    assert error.__notes__ == [f"see {CLEAN}"]
    assert KEY not in str(error)


def test_those_that_led_to_it_are_cleaned_as_well():
    cause, context, member = ValueError(URL), KeyError(URL), OSError(5, URL)
    error = RuntimeError("group")
    error.__cause__, error.__context__ = cause, context
    error.exceptions = (member, error)  # as an ExceptionGroup's; and a loop
    clean_exception(error, KEY)
    assert [one.args for one in (cause, context, member)] == [(CLEAN,), (CLEAN,), (5, CLEAN)]
    clean_exception(None, KEY)


@dataclass(frozen=True)
class FrozenError(Exception):
    url: str


class OddError(Exception):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url
        self.number = 7
        self.client = SimpleNamespace(url=url)

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name):
            raise TypeError(f"{name} is set already")
        super().__setattr__(name, value)


class SlottedError(Exception):
    __slots__ = ("unset", "url")

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url


@pytest.mark.parametrize("kind", [FrozenError, OddError, SlottedError])
def test_attributes_are_cleaned_however_they_are_guarded(kind):
    error = raised(kind(URL))
    clean_exception(error, KEY)
    assert error.url == CLEAN


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, URL),
        FileNotFoundError(2, "gone", URL),
        SystemExit(URL),
        ImportError(URL, name=URL),
        StopIteration(URL),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_pythons_own_errors_keep_beside_their_arguments_is_cleaned(error):
    clean_exception(raised(error), KEY)
    assert KEY not in str(error)
    assert not [name for name in dir(error) if KEY in str(getattr(error, name, ""))]


def test_an_argument_that_cannot_be_compared_is_left_alone():
    class Incomparable:
        def __eq__(self, _other: object) -> bool:
            raise RuntimeError

        __hash__ = object.__hash__

    one = Incomparable()
    error = ValueError([one, URL], one, Point(one))
    clean_exception(error, KEY)
    assert error.args[0][0] is one
    assert error.args[0][1] == CLEAN


# reports


def report(**values: object) -> pytest.TestReport:
    fields = {"nodeid": "t.py::x", "location": ("t.py", 1, "x"), "keywords": {}, "outcome": "failed", "when": "call"}
    return pytest.TestReport(**{**fields, "longrepr": None, **values})


def test_a_report_is_cleaned_all_over():
    one = report(
        longrepr=("t.py", 1, f"Skipped: {URL}"),
        sections=[("Captured stdout call", URL)],
        user_properties=[("url", _SecretURL(URL)), (7, [URL])],
    )
    one.wasxfail = f"reason: {URL}"
    clean_report(one, KEY)
    assert one.longrepr == ("t.py", 1, f"Skipped: {CLEAN}")
    assert one.sections == [("Captured stdout call", CLEAN)]
    assert one.user_properties == [("url", CLEAN), ("7", [CLEAN])]
    assert type(one.user_properties[0][1]) is str
    assert one.wasxfail == f"reason: {CLEAN}"


def test_a_tree_that_is_deeper_than_is_looked_into_becomes_text():
    class Repr:
        def __init__(self, inner: object) -> None:
            self.inner = inner

        def __str__(self) -> str:
            return str(self.inner)

    tree: object = URL
    for _ in range(20):
        tree = Repr(tree)
    one = report(longrepr=tree)
    clean_report(one, KEY)
    assert one.longrepr == CLEAN


def test_a_tree_that_holds_itself_comes_to_an_end():
    one = SimpleNamespace(text=URL, parts=[])
    one.parts.append(one)
    clean_tree(one, KEY)
    assert one.text == CLEAN


# whole runs

COLLECTS = """
import json, pytest
SEEN = []

def tell(what, *values):
    SEEN.append([what, *map(str, values)])

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    tell("makereport", report.longrepr, report.sections, report.user_properties, getattr(report, "wasxfail", ""))
    if call.excinfo is not None:
        tell("excinfo", repr(call.excinfo.value), call.excinfo.exconly(), vars(call.excinfo.value))

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report):
    tell("logreport", report.longreprtext, report.sections, report.user_properties)

@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message):
    tell("warning", warning_message.message)

def pytest_internalerror(excrepr):
    tell("internalerror", excrepr)

def pytest_unconfigure(config):
    (config.rootpath / "seen.json").write_text(json.dumps(SEEN))
"""

LEAKS = """
import pytest, warnings

def test_assertion(anchor_session):
    url = str(anchor_session().cdp_url)
    assert url == "other"

def test_long(anchor_session):
    url = "x" * 500 + anchor_session().cdp_url
    assert [url] == ["y" * 500]

def test_exception(anchor_session):
    session = anchor_session()
    try:
        raise KeyError(session.cdp_url)
    except KeyError as error:
        raise RuntimeError(f"cannot connect to {session.cdp_url}") from error

def test_output(anchor_session, record_property):
    url = anchor_session().cdp_url
    print(url)
    record_property("url", url)
    warnings.warn(f"slow: {url}")
    raise ValueError

def test_skipped(anchor_session):
    pytest.skip(f"no browser at {anchor_session().cdp_url}")

def test_xfail(anchor_session):
    pytest.xfail(f"broken at {anchor_session().cdp_url}")

@pytest.fixture
def broken(anchor_session):
    yield anchor_session()
    raise OSError(5, anchor_session().cdp_url)

def test_teardown(broken): pass
"""


@pytest.fixture
def leak(pytester: pytest.Pytester, server: FaultServer, monkeypatch: pytest.MonkeyPatch):
    """Run a suite, and return what others saw of it, once no file and no output holds the key."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)

    def leak(test: str, *args: str, conftest: str = COLLECTS) -> str:
        pytester.makeconftest(conftest)
        pytester.makepyfile(test)
        options = [
            "-p",
            "pytest_anchor",
            "-o",
            "anchor_reaper=off",
            "--junitxml=junit.xml",
            "-o",
            "junit_family=xunit1",
            "-rA",
            "-l",
            *args,
        ]
        result = pytester.runpytest_inprocess(*options, no_reraise_ctrlc=True)
        shown = result.stdout.str() + result.stderr.str()
        seen = Path("seen.json").read_text()
        assert KEY not in shown + seen + Path("junit.xml").read_text()
        assert KEY[:10] not in shown + seen
        return seen + shown

    return leak


@pytest.mark.parametrize("tb", ["long", "short", "line", "native"])
def test_nothing_that_a_test_leaks_reaches_another_plugin_or_a_file(leak, tb):
    seen = leak(LEAKS, f"--tb={tb}")
    for word in ("cannot connect to ws://", "slow: ws://", "no browser at ws://", "broken at ws://", "apiKey=***"):
        assert word in seen
    assert "makereport" in seen
    assert "4 failed, 1 passed, 1 skipped, 1 xfailed" in seen


def test_an_internal_error_is_cleaned(leak):
    breaks = COLLECTS + (
        "\ndef pytest_runtest_teardown(item):\n    tell('teardown')\n"
        "\n@pytest.hookimpl(trylast=True)\ndef pytest_runtest_logfinish(nodeid):\n"
        "    raise RuntimeError('it was ' + URLS[0])\nURLS = []\n"
    )
    seen = leak(
        "import conftest\ndef test_it(anchor_session): conftest.URLS.append(anchor_session().cdp_url)\n",
        conftest=breaks,
    )
    assert "INTERNALERROR" in seen
    assert "it was ws://" in seen


def test_an_interruption_is_cleaned(leak):
    seen = leak("def test_it(anchor_session): raise KeyboardInterrupt(anchor_session().cdp_url)\n", "--full-trace")
    assert "Interrupt" in seen


def test_a_run_that_creates_nothing_is_left_as_it_is(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("ANCHORBROWSER_API_KEY", KEY)
    pytester.makepyfile(f"def test_it(): assert {KEY!r} == ''")
    result = pytester.runpytest_inprocess("-p", "pytest_anchor")
    assert KEY in result.stdout.str()
