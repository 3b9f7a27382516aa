import json
import math
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import fault_server as fs
import pytest
from api_calls import TAG, check_no_key, later
from fault_server import KEY
from ports import unused_port
from records import NO_IDS

from pytest_anchor.api import AnchorAPI, Created, endpoints
from pytest_anchor.api import caller as caller_module
from pytest_anchor.api.caller import Caller
from pytest_anchor.errors import AnchorAPIError, AnchorLostCreateError

# creation


def test_create(server, api):
    created = api.create({"session": {"tags": ["a", "b"]}, "browser": {"headless": {"active": True}}})
    assert server.alive == [created.id]
    assert server.sessions[created.id].tags == ["a", "b"]
    assert created.cdp_url.startswith("ws://")
    assert created.live_view_url == f"{server.url}/live/{created.id}"
    assert server.requests == [("POST", "/v1/sessions")]
    headers = server.headers[0]
    assert headers["anchor-api-key"] == KEY
    assert headers["accept"] == "application/json"
    assert headers["accept-encoding"] == "identity"
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "data",
    [{}, {"cdp_url": None, "live_view_url": 7}, {"live_view_url": ["x"]}, {"live_view_url": "http://x/\x1b[2J\n"}],
)
def test_urls_that_are_missing_or_no_text_are_empty(server, api, data):
    server.fail("POST", fs.body(json.dumps({"data": {"id": "abc", **data}}).encode(), 201))
    assert api.create({}) == Created("abc", "", "")


def test_connections_are_kept_alive_and_shared_by_threads(server, api):
    for _ in range(5):
        api.end(api.create({}).id, TAG, deadline=later())
    assert server.connections == 1
    with ThreadPoolExecutor(8) as pool:
        ids = {created.id for created in pool.map(lambda _: api.create({}), range(24))}
    assert ids == set(server.alive)
    assert server.connections <= 9


@pytest.mark.parametrize("code", [c for c in (*range(400, 452), 499) if c != 408])
def test_a_4xx_refuses_and_is_not_asked_twice(server, api, code):
    server.fail_always("POST", fs.status(code, "because", Retry_After="0"))
    with pytest.raises(AnchorAPIError) as caught:
        api.create({})
    assert type(caught.value) is AnchorAPIError
    assert (caught.value.status, caught.value.code, caught.value.message) == (code, str(code), "because")
    assert caught.value.tries == 1
    assert caught.value.remedy
    assert server.count("POST") == 1


def lost_faults():
    for code in (408, 500, 501, 502, 503, 504, 599):
        yield pytest.param(fs.lost_status(code), id=str(code))
    for code in (300, 301, 302, 303, 307, 308):
        yield pytest.param(fs.body(b"", code, Location="/v1/sessions"), id=str(code))
    yield pytest.param(fs.lost_reset, id="reset")
    yield pytest.param(fs.lost_truncated, id="truncated")
    yield pytest.param(fs.trickle(b"rubbish\r\n\r\n"), id="no HTTP")
    bodies = {
        "empty": b"",
        "html": b"<html>200 OK</html>",
        "list": b"[]",
        "null": b"null",
        "text": b'"x"',
        "no data": b"{}",
        "data is null": b'{"data": null}',
        "data is a list": b'{"data": ["id"]}',
        "no id": b'{"data": {"cdp_url": "x"}}',
        "cut": b'{"data": {"id": "abc"',
        "nested": b"[" * 100_000,
        "no UTF-8": b"\xff\xfe\xfa",
        "id is null": b'{"data": {"id": null}}',
        "id is a number": b'{"data": {"id": 7}}',
        "too long": b" " * ((1 << 20) + 1),
    }
    for name, content in bodies.items():
        yield pytest.param(fs.lost_body(content), id=name)
    for value in NO_IDS:
        yield pytest.param(fs.lost_body(json.dumps({"data": {"id": value}}).encode()), id=f"id {value[:9]!a}")


@pytest.mark.parametrize("fault", list(lost_faults()))
def test_without_a_usable_answer_a_creation_is_lost_and_not_asked_twice(server, api, fault):
    server.fail("POST", fault)
    with pytest.raises(AnchorLostCreateError, match="looks for it by its tag") as caught:
        api.create({})
    assert caught.value.what == "create a session"
    assert caught.value.message
    assert caught.value.tries == 1
    assert str(caught.value).isprintable()
    assert server.requests == [("POST", "/v1/sessions")]
    check_no_key(caught.value)


@pytest.mark.parametrize("fault", [fs.silent, fs.trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")])
def test_an_answer_that_is_late_loses_a_creation_which_is_not_asked_twice(server, api, fault, monkeypatch, until):
    monkeypatch.setattr(caller_module, "CONNECT_TIMEOUT", 0.5)  # the deadline is the sum of both
    monkeypatch.setattr(endpoints, "CREATE_TIMEOUT", 0.5)
    server.fail("POST", fault)
    with pytest.raises(AnchorLostCreateError, match="looks for it by its tag") as caught:
        api.create({})
    assert "in time" in caught.value.message
    assert caught.value.tries == 1
    until(lambda: server.requests)  # on a busy machine the server may come to it later than that
    assert server.requests == [("POST", "/v1/sessions")]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{}", "an answer without an id"), (b'{"data": {"id": "../all"}}', "a hostile id, '../all'")],
)
def test_the_reason_of_a_lost_creation(server, api, content, message):
    server.fail("POST", fs.lost_body(content))
    with pytest.raises(AnchorLostCreateError) as caught:
        api.create({})
    assert caught.value.message == message
    assert caught.value.status == 200


def test_a_creation_may_take_longer_than_other_calls(server, api, monkeypatch):
    monkeypatch.setitem(Caller.call.__kwdefaults__, "read", 0.05)
    server.fail("POST", fs.slow(0.2))
    assert api.create({}).id in server.alive
    assert endpoints.CREATE_TIMEOUT == 120


def test_a_refused_connection_creates_nothing(quick):
    api = AnchorAPI(f"http://127.0.0.1:{unused_port()}", KEY)
    with pytest.raises(AnchorAPIError, match="Connection refused") as caught:
        api.create({})
    assert type(caught.value) is AnchorAPIError
    assert "--anchor-base-url" in caught.value.remedy


def test_a_name_that_does_not_resolve_creates_nothing(quick):
    with pytest.raises(AnchorAPIError) as caught:
        AnchorAPI("https://nowhere.invalid", KEY).create({})
    assert type(caught.value) is AnchorAPIError
    assert "0x" not in str(caught.value)


def test_a_connection_that_is_never_made_creates_nothing(quick, monkeypatch):
    monkeypatch.setattr(caller_module, "CONNECT_TIMEOUT", 0.1)
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):  # a full backlog answers no more
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        with pytest.raises(AnchorAPIError, match="no answer in time") as caught:
            AnchorAPI(f"http://127.0.0.1:{listener.getsockname()[1]}", KEY).create({})
    assert type(caught.value) is AnchorAPIError


# the plan


@pytest.mark.parametrize("most", [1, 5, 25.0, 200, 10**6])
def test_the_plans_cap(server, api, most):
    server.cap = most
    assert api.max_sessions(deadline=later()) == most


@pytest.mark.parametrize("most", [None, 0, 0.5, -1, True, math.nan, math.inf, "5", [5], {}])
def test_what_is_no_cap(server, api, most):
    server.cap = most
    assert api.max_sessions(deadline=later()) is None


@pytest.mark.parametrize(
    "answer",
    [
        (500, {}, b'{"data": {"max_concurrent_browsers": 5}}'),
        (202, {}, b'{"data": {"max_concurrent_browsers": 5}}'),
        (403, {}, b""),
        (429, {"Retry-After": "30"}, b""),
        (200, {}, b""),
        (200, {}, b"<html>"),
        (200, {}, b"[]"),
        (200, {}, b'{"data": [5]}'),
        (200, {}, b'{"max_concurrent_browsers": 5}'),
        (200, {}, b"[" * 100_000),
        (200, {}, b" " * 2_000_000),
    ],
)
def test_an_answer_that_tells_no_cap(server, api, monkeypatch, answer):
    server.cap = 5
    monkeypatch.setattr(fs, "ok", lambda _data: answer)
    before = time.monotonic()
    assert api.max_sessions(deadline=later(0.5)) is None
    assert time.monotonic() - before < 6


def test_the_plan_is_not_waited_for(server, api, monkeypatch):
    server.cap = 5
    monkeypatch.setattr(fs, "ok", lambda _data: server.closing.wait(30))
    before = time.monotonic()
    assert api.max_sessions(deadline=later(0.2)) is None
    assert AnchorAPI(f"http://127.0.0.1:{unused_port()}", KEY).max_sessions(deadline=later(0.2)) is None
    assert time.monotonic() - before < 8
