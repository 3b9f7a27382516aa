import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import fault_server as fs
import pytest
from fault_server import KEY, FaultServer
from records import NO_IDS

from pytest_anchor import api as api_module
from pytest_anchor.api import AnchorAPI, Created, Ended, Listed, limit_told
from pytest_anchor.errors import AnchorAPIError, AnchorLostCreateError, Limit

TAG = "pytest-anchor:new=inv-1"


def later(seconds=5.0):
    return time.monotonic() + seconds


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def frames(error):
    """The values of all local variables that a traceback could show, as text."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") != __name__:
            for value in trace.tb_frame.f_locals.values():
                yield repr(value)
        trace = trace.tb_next


def check_no_key(error, key=KEY):
    chain = [error]
    while (error := error.__cause__ or error.__context__) is not None:
        chain.append(error)
    for one in chain:
        assert key not in str(one)
        assert key not in repr(one)
        assert key.encode() not in pickle.dumps(one)


# ids


@pytest.mark.parametrize("value", NO_IDS)
def test_a_hostile_id_never_reaches_the_server(server, api, value):
    stranger = server.add("theirs")
    with pytest.raises(AnchorAPIError, match="this is no session id, and was not sent") as caught:
        api.end(value, TAG, deadline=later())
    assert str(caught.value).isprintable()
    assert server.requests == []
    assert server.alive == [stranger]


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


@pytest.mark.parametrize("data", [{}, {"cdp_url": None, "live_view_url": 7}, {"live_view_url": ["x"]}])
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
    monkeypatch.setattr(api_module, "CONNECT_TIMEOUT", 0.5)  # the deadline is the sum of both
    monkeypatch.setattr(api_module, "CREATE_TIMEOUT", 0.5)
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
    monkeypatch.setitem(AnchorAPI._call.__kwdefaults__, "read", 0.05)
    server.fail("POST", fs.slow(0.2))
    assert api.create({}).id in server.alive
    assert api_module.CREATE_TIMEOUT == 120


def test_a_refused_connection_creates_nothing(quick):
    api = AnchorAPI(f"http://127.0.0.1:{free_port()}", KEY)
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
    monkeypatch.setattr(api_module, "CONNECT_TIMEOUT", 0.1)
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):  # a full backlog answers no more
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        with pytest.raises(AnchorAPIError, match="no answer in time") as caught:
            AnchorAPI(f"http://127.0.0.1:{listener.getsockname()[1]}", KEY).create({})
    assert type(caught.value) is AnchorAPIError


# the key


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(server, api, code):
    with FaultServer() as other:
        for method in ("POST", "GET", "DELETE"):
            server.fail_always(method, fs.body(b"", code, Location=f"{other.url}/v1/sessions"))
        with pytest.raises(AnchorLostCreateError, match="the key would go along"):
            api.create({})
        with pytest.raises(AnchorAPIError, match="the key would go along"):
            api.end("abc", TAG, deadline=later())
        with pytest.raises(AnchorAPIError, match="the key would go along"):
            api.sessions_with_tag(TAG, deadline=later())
        assert other.connections == 0


def test_to_loopback_goes_no_proxy(server, quick, monkeypatch):
    with FaultServer() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        AnchorAPI(server.url, KEY).create({})
        assert proxy.connections == 0
    assert len(server.alive) == 1


def test_a_proxy_that_does_not_answer_creates_nothing(quick, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(AnchorAPIError) as caught:
        AnchorAPI("https://anchor.example", KEY).create({})
    assert type(caught.value) is AnchorAPIError


class Tunnels(socketserver.BaseRequestHandler):
    """A proxy that leads every CONNECT to one server."""

    def handle(self):
        while not self.request.recv(4096, socket.MSG_PEEK).endswith(b"\r\n\r\n"):
            time.sleep(0.01)
        self.request.recv(4096)
        with socket.create_connection(self.server.leads_to) as there:
            self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=self.pass_on, args=(there, self.request))
            back.start()
            self.pass_on(self.request, there)
            back.join()

    def pass_on(self, source, target):
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def behind_a_proxy(server, quick, monkeypatch, tmp_path):
    """The API with TLS, to which a proxy leads."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=anchor.example"
    names = ["-addext", "subjectAltName=DNS:anchor.example", "-out", certificate, "-keyout", key]
    subprocess.run([*make.split(), *names], check=True, capture_output=True, timeout=30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tunnels) as proxy:
        proxy.daemon_threads = True
        proxy.leads_to = server._http.server_address
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        yield AnchorAPI("https://anchor.example", KEY)
        proxy.shutdown()
        thread.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the server's certificate")
def test_what_is_lost_behind_a_proxy_is_lost(server, behind_a_proxy):
    api = behind_a_proxy
    ended = api.create({}).id
    assert not api.end(ended, TAG, deadline=later()).already
    for fault in (fs.lost_reset, fs.lost_truncated, fs.lost_status(502)):
        server.fail("POST", fault)
        with pytest.raises(AnchorLostCreateError):
            api.create({})
    assert len(server.alive) == 3


def test_a_netrc_does_not_replace_the_key(server, quick, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    AnchorAPI(server.url, KEY).create({})
    assert "authorization" not in server.headers[0]
    assert server.headers[0]["anchor-api-key"] == KEY


def test_cookies_are_not_kept(server, api):
    server.fail("GET", fs.body(b'{"data": {"items": []}}', Set_Cookie="a=b; Path=/"))
    for _ in range(2):
        api.sessions_with_tag(TAG, deadline=later())
    assert "cookie" not in server.headers[1]


def test_the_key_is_in_no_repr(api, server):
    assert KEY not in repr(api)
    assert server.url in repr(api)
    assert KEY not in repr(api._auth)
    assert KEY not in repr(vars(api._here().session))


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_the_key_is_in_no_error(server, api, method, monkeypatch):
    monkeypatch.setattr(api_module, "CREATE_TIMEOUT", 0.2)
    calls = {
        "POST": lambda: api.create({}),
        "GET": lambda: api.sessions_with_tag(TAG, deadline=later()),
        "DELETE": lambda: api.end("abc", TAG, deadline=later()),
    }
    echo = json.dumps({"error": {"code": KEY, "message": f"bad key {KEY}"}}).encode()
    for fault in (
        fs.reset,
        fs.body(echo, 400),
        fs.body(f"<html>{KEY}</html>".encode(), 403),
        fs.body(b"x" * 195 + KEY.encode(), 403),
        fs.body(json.dumps({"data": {"id": f"x?apiKey={KEY}"}}).encode(), 200 if method == "POST" else 400),
    ):
        server.fail_always(method, fault)
        with pytest.raises(AnchorAPIError) as caught:
            calls[method]()
        check_no_key(caught.value)
        check_no_key(caught.value, KEY[:5])


def test_the_key_is_in_no_frame_when_the_connection_fails(quick):
    api = AnchorAPI(f"http://127.0.0.1:{free_port()}", KEY)
    with pytest.raises(AnchorAPIError) as caught:
        api.create({})
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert not [text for text in frames(caught.value) if KEY in text]


# retries


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_passing_trouble_is_asked_again(server, api, code):
    session_id = server.add()
    server.fail("DELETE", *[fs.status(code)] * 3)
    assert api.end(session_id, TAG, deadline=later()) == Ended(already=False)
    assert server.alive == []
    server.fail("GET", *[fs.status(code)] * 3)
    assert api.sessions_with_tag(TAG, deadline=later()) == []
    assert (server.count("DELETE"), server.count("GET")) == (4, 4)


def test_resets_are_asked_again(server, api):
    session_id = server.add()
    server.fail("DELETE", *[fs.reset] * 3)
    server.fail("GET", *[fs.reset] * 3)
    api.end(session_id, TAG, deadline=later())
    api.sessions_with_tag(TAG, deadline=later())
    assert (server.count("DELETE"), server.count("GET")) == (4, 4)


@pytest.mark.parametrize("fault", [fs.status(500, "still broken"), fs.reset], ids=["500", "reset"])
def test_after_four_tries_it_gives_up(server, api, fault):
    server.fail_always("DELETE", fault)
    with pytest.raises(AnchorAPIError, match="tried 4 times") as caught:
        api.end(server.add(TAG), TAG, deadline=later())
    assert caught.value.tries == server.count("DELETE") == 4
    assert caught.value.status == (500 if fault is not fs.reset else None)
    assert caught.value.remedy


@pytest.mark.parametrize("code", [400, 403, 500])
def test_an_error_is_settled_by_the_list_as_well(server, api, code):
    server.fail_always("DELETE", fs.status(code, "no"))
    running, over = server.add(TAG), server.add(TAG)
    server.end(over)
    assert api.end(over, TAG, deadline=later()) == Ended(already=True)
    for session_id in (running, "unknown"):
        with pytest.raises(AnchorAPIError, match="no") as caught:
            api.end(session_id, TAG, deadline=later())
        assert (caught.value.status, caught.value.what) == (code, f"end session {session_id}")
    server.fail_always("GET", fs.status(402))
    with pytest.raises(AnchorAPIError, match="no") as caught:
        api.end(over, TAG, deadline=later())
    assert caught.value.status == code


@pytest.mark.parametrize("code", [400, 402, 403, 405, 409, 422, 501])
def test_lasting_trouble_is_not_asked_again(server, api, code):
    server.fail_always("DELETE", fs.status(code, "no"))
    with pytest.raises(AnchorAPIError) as caught:
        api.end(server.add(TAG), TAG, deadline=later())
    assert (caught.value.status, caught.value.tries) == (code, 1)
    assert server.count("DELETE") == 1


def when(seconds):
    return format_datetime(datetime.now(timezone.utc) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize(
    "value",
    [lambda: "999999999", lambda: "9" * 400, lambda: when(3600), lambda: "Fri, 31 Dec 9999 23:59:59 GMT"],
    ids=["seconds", "digits", "date", "9999"],
)
def test_retry_after_is_waited_for_but_not_for_ever(server, api, code, value, monkeypatch):
    monkeypatch.setattr(api_module, "MAX_RETRY_AFTER", 0.15)
    monkeypatch.setattr(api_module, "FIRST_PAUSE", 0.15)  # what a 429 asks for in vain
    server.fail("DELETE", fs.status(code, Retry_After=value()))
    before = time.monotonic()
    api.end(server.add(), TAG, deadline=later())
    assert 0.15 <= time.monotonic() - before < 3


@pytest.mark.parametrize(
    "value", ["junk", "-5", "0", "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 31 Dec 99999 23:59:59 GMT"]
)
def test_retry_after_that_says_nothing_is_no_reason_to_wait(server, api, value):
    server.fail("DELETE", fs.status(429, Retry_After=value))
    before = time.monotonic()
    api.end(server.add(), TAG, deadline=later())
    assert time.monotonic() - before < 5
    assert server.count("DELETE") == 2


def test_retry_after_in_seconds(server, api):
    server.fail("GET", fs.status(429, Retry_After="1"))
    before = time.monotonic()
    api.sessions_with_tag(TAG, deadline=later())
    assert 1 <= time.monotonic() - before < 4


def test_retries_back_off(server):
    server.fail("GET", *[fs.status(500)] * 2)
    before = time.monotonic()
    AnchorAPI(server.url, KEY).sessions_with_tag(TAG, deadline=later())
    assert 0.4 <= time.monotonic() - before < 4


def test_nothing_is_waited_for_past_the_deadline(server, api):
    server.fail_always("DELETE", fs.status(429, "slow down", Retry_After="25"))
    before = time.monotonic()
    with pytest.raises(AnchorAPIError, match="slow down") as caught:
        api.end(server.add(TAG), TAG, deadline=later(20))
    assert time.monotonic() - before < 10
    assert (caught.value.status, caught.value.tries, server.count("DELETE")) == (429, 1, 1)


def test_resets_are_not_asked_again_past_the_deadline(server):
    server.fail_always("DELETE", fs.reset)
    with pytest.raises(AnchorAPIError) as caught:
        AnchorAPI(server.url, KEY).end(server.add(TAG), TAG, deadline=later(0.2))
    assert caught.value.tries == server.count("DELETE") == 2  # the first retry follows at once


# what a 429 tells


DAY = "Thu, 01 Jan 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        (" 007 ", 7.0),
        ("1.5", 1.5),
        ("3600", 3600.0),
        ("3601", None),
        ("9" * 9, None),
        pytest.param("9" * 5000, None, id="many digits"),
        ("-1", None),
        ("+1", None),
        ("1e3", None),
        ("nan", None),
        ("inf", None),
        ("0x10", None),
        ("1_0", None),
        ("٧", None),
        ("5, 5", None),
        ("5s", None),
        ("", None),
        ("\x00\xff", None),
        pytest.param("x" * 1_000_000, None, id="long"),
        ("Thu, 01 Jan 2026 12:00:10 GMT", 10.0),
        ("Thursday, 01-Jan-26 12:00:10 GMT", 10.0),
        ("Thu Jan  1 12:00:10 2026", 10.0),
        ("Thu, 01 Jan 2026 12:00:00 GMT", 0.0),
        ("Thu, 01 Jan 2026 11:59:59 GMT", None),
        ("Thu, 01 Jan 2026 13:00:01 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("Thu, 99 Jan 2026 12:00:10 GMT", None),
    ],
)
def test_retry_after(value, seconds):
    assert limit_told({"Retry-After": value, "Date": DAY}) == Limit(seconds, None, None)


@pytest.mark.parametrize("date", [None, "", "now", "Thu, 99 Jan 2026 12:00:00 GMT"])
def test_without_the_answers_date_this_machines_clock_tells(date):
    told = limit_told({"Retry-After": when(10)} | ({} if date is None else {"Date": date}))
    assert told.retry_after == pytest.approx(10, abs=5)


@pytest.mark.parametrize(
    ("header", "policy"),
    [
        ('"5-in-1min"; q=5; w=60; pk=:cGs9Iiw7:', (5, 60.0)),
        ("q=5; w=60", (5, 60.0)),
        ("5;w=60", (5, 60.0)),
        ("w=60;q=5", (5, 60.0)),
        ('"a";q=5;w=0.5', (5, 0.5)),
        ('"a";q=100;w=60, "b";q=5;w=60', (5, 60.0)),
        ('"a";q=5;w=60,"b";q=100;w=3600', (5, 60.0)),
        ('"a";q=10;w=120, "b";q=5;w=60', (5, 60.0)),
        ('"a";q=7, "b";w=60', (None, None)),
        ('"a";q=7, "b";w=1, "c";q=9;w=90', (9, 90.0)),
        ('"x, q=1; w=9; \\", ";q=5;w=60', (5, 60.0)),
        ("x;pk=:q1w2:;q=5;w=60", (5, 60.0)),
        ('q="5";w=60', (None, None)),
        ('"never closed;q=5;w=60', (None, None)),
        ('"' * 3 + ";q=5;w=60", (None, None)),
        ("q=0;w=60", (None, None)),
        ("q=-5;w=60", (None, None)),
        ("q=5.0;w=60", (None, None)),
        ("q=100000;w=60", (100_000, 60.0)),
        ("q=100001;w=60", (None, None)),
        ("q=5;w=0", (None, None)),
        ("q=5;w=-1", (None, None)),
        ("q=5;w=nan", (None, None)),
        ("q=5;w=1e2", (None, None)),
        ("q=5;w=86400", (5, 86400.0)),
        ("q=5;w=86401", (None, None)),
        ("q=٥;w=60", (None, None)),
        ("5", (None, None)),
        (";;;,,,===", (None, None)),
        ("", (None, None)),
        ("\x00\xff\n", (None, None)),
        pytest.param('"\\' * 2_000, (None, None), id="many quotes"),
        pytest.param('"\\' * 1_000_000, (None, None), id="too many quotes"),
        pytest.param("q=5;w=60," * 1_000_000, (None, None), id="too many policies"),
    ],
)
def test_a_policy(header, policy):
    before = time.monotonic()
    assert limit_told({"RateLimit-Policy": header}) == Limit(None, *policy)
    assert time.monotonic() - before < 2


def test_no_header_raises():
    dice = random.Random(4711)
    parts = [
        "q=",
        "w=",
        "5",
        "60",
        ";",
        ",",
        '"',
        ":",
        "\\",
        " ",
        "\x00",
        "\xff",
        "é",
        "=",
        "Thu, 01 Jan 2026 ",
        "-",
        "1e9",
    ]
    for _ in range(3000):
        text = "".join(dice.choices(parts, k=dice.randrange(12)))
        told = limit_told({"Retry-After": text, "RateLimit-Policy": text, "Date": text})
        assert told.retry_after is None or 0 <= told.retry_after <= 3600
        assert (told.quota is None) == (told.window is None)


def told_by(server, api, method, headers):
    server.fail_always(method, lambda *_: (429, headers, b""))
    calls = {
        "POST": lambda: api.create({}),
        "GET": lambda: api.sessions_with_tag(TAG, deadline=later(1.0)),
        "DELETE": lambda: api.end("abc", TAG, deadline=later(1.0)),
    }
    with pytest.raises(AnchorAPIError) as caught:
        calls[method]()
    assert caught.value.status == 429
    return caught.value.limit


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
def test_every_error_of_a_429_says_what_it_told(server, quick, method):
    headers = {"Retry-After": "12", "RateLimit-Policy": '"5-in-1min"; q=5; w=60; pk=:YWI=:'}
    assert told_by(server, AnchorAPI(server.url, KEY), method, headers) == Limit(12.0, 5, 60.0)
    assert told_by(server, AnchorAPI(server.url, KEY), method, {}) == Limit(None, None, None)


def test_other_answers_tell_no_limit(server, api):
    server.fail("POST", fs.status(402, Retry_After="5", RateLimit_Policy="q=5;w=60"))
    with pytest.raises(AnchorAPIError) as caught:
        api.create({})
    assert caught.value.limit is None


# the pause after a 429


def together(number, call):
    """What *number* threads that make the *call* return or raise."""

    def one(n):
        try:
            return call(n)
        except AnchorAPIError as error:
            return error

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def test_a_429_holds_all_but_creations_back(server, api):
    session_id = server.add(TAG)
    server.fail("DELETE", fs.status(429, Retry_After="1"))
    ending = threading.Thread(target=lambda: api.end(session_id, TAG, deadline=later(20)))
    ending.start()
    while api.quiet_until == 0:
        time.sleep(0.001)
    until = api.quiet_until
    assert api.create({}).id
    lists = together(8, lambda _: api.sessions_with_tag(TAG, deadline=later(20)))
    assert [[one.id for one in listed] for listed in lists] == [[session_id]] * 8
    ending.join(20)
    assert [method for method, _ in server.requests[:2]] == ["DELETE", "POST"]
    assert min(server.times[2:]) >= until
    assert server.times[1] < until
    assert session_id not in server.alive


def test_those_who_waited_do_not_begin_at_the_same_moment(server, api, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept) and 1e9)
    waits = set()
    for _ in range(100):
        slept.clear()
        api._here().pause.until = 7.0
        api._wait("x", api_module._Call(60.0, lambda _: None))
        assert 7.0 <= slept[0] <= 7.0 + api_module.WAKE_JITTER == 7.1
        assert len(slept) == 1
        waits.add(round(slept[0], 2))
    assert len(waits) > 5


def test_each_429_of_a_call_makes_the_pause_longer():
    for _ in range(100):
        call = api_module._Call(60.0, lambda _: None)
        pauses = [call.pause_after(Limit(None, None, None)) for _ in range(12)]
        for n, pause in enumerate(pauses):
            assert min(0.25 * 2**n, 30) <= pause <= min(0.375 * 2**n, 30)
        assert api_module._Call(60.0, lambda _: None).pause_after(Limit(3.0, None, None)) == 3.0
        assert api_module._Call(60.0, lambda _: None).pause_after(Limit(31.0, None, None)) == 30.0
        assert api_module._Call(60.0, lambda _: None).pause_after(Limit(0.0, None, None)) >= 0.25


def test_a_later_429_does_not_shorten_the_pause(server, api):
    server.fail("GET", fs.status(429, Retry_After="20"))
    for _ in range(2):
        with pytest.raises(AnchorAPIError):
            api.sessions_with_tag(TAG, deadline=later(0.3))
    api._here().pause.extend(0.1)
    assert api.quiet_until - time.monotonic() > 10


def test_where_the_pause_is_longer_than_the_deadline_nothing_is_sent(server, api):
    server.fail_always("DELETE", fs.status(429, "slow down", Retry_After="30"))
    session_id = server.add(TAG)
    before = time.monotonic()
    with pytest.raises(AnchorAPIError, match="slow down"):
        api.end(session_id, TAG, deadline=later(20))
    with pytest.raises(AnchorAPIError, match="HTTP 429: “the API asked to wait another .*fewer workers") as caught:
        api.end(session_id, TAG, deadline=later(20))
    assert (caught.value.status, caught.value.tries, caught.value.limit) == (429, 0, None)
    assert caught.value.what == f"end session {session_id}"
    with pytest.raises(AnchorAPIError, match="could not list the run's sessions: HTTP 429"):
        api.sessions_with_tag(TAG, deadline=later(20))
    assert time.monotonic() - before < 10
    assert len(server.requests) == 1


def test_a_session_that_is_not_known_while_the_api_asks_to_wait_is_not_settled(server, api):
    def refuse(_handler, _act):
        api._here().pause.extend(30)  # another thread met a 429
        return fs.error(401)

    server.fail("DELETE", refuse)
    with pytest.raises(AnchorAPIError, match="the API asked to wait") as caught:
        api.end("abc", TAG, deadline=later(1))
    assert (caught.value.status, caught.value.tries, len(server.requests)) == (429, 1, 1)
    assert caught.value.what == "end session abc"


def test_the_read_that_settles_an_end_waits_as_well(server, api):
    session_id = server.add(TAG)
    server.end(session_id)
    server.fail("GET", fs.status(429, Retry_After="1"))
    before = time.monotonic()
    assert api.end(session_id, TAG, deadline=later(20)) == Ended(already=True)
    assert time.monotonic() - before >= 1
    server.fail("GET", fs.status(429, Retry_After="20", RateLimit_Policy="q=5;w=60"))
    with pytest.raises(AnchorAPIError) as caught:
        api.end(session_id, TAG, deadline=later(2))
    assert (caught.value.status, caught.value.limit) == (429, Limit(20.0, 5, 60.0))


def test_other_retries_keep_the_pause(server, api):
    def broken(_handler, _act):
        api._here().pause.extend(0.8)  # another thread met a 429
        return fs.error(500)

    server.fail("DELETE", broken)
    api.end(server.add(TAG), TAG, deadline=later(20))
    assert server.times[1] - server.times[0] >= 0.75
    server.fail("DELETE", broken)
    with pytest.raises(AnchorAPIError, match="the API asked to wait") as caught:
        api.end(server.add(TAG), TAG, deadline=later(0.5))
    assert (caught.value.tries, server.count("DELETE")) == (1, 3)


def test_a_429_without_an_end_pauses_as_well(server, api):
    server.fail("DELETE", fs.body(b"x" * 2_000_000, 429, Retry_After="20"))
    with pytest.raises(AnchorAPIError, match="more than 1048576 bytes"):
        api.end(server.add(TAG), TAG, deadline=later(2))
    assert api.quiet_until - time.monotonic() > 10


def test_a_creations_429_is_the_callers(server, api):
    server.fail("POST", fs.status(429, Retry_After="20"))
    with pytest.raises(AnchorAPIError):
        api.create({})
    assert api.quiet_until == 0
    api._here().pause.extend(30)
    api.create({})
    assert server.count("POST") == 2


def test_ctrl_c_gets_through_a_pause(server, api):
    api._here().pause.extend(20)
    timer = threading.Timer(0.2, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    before = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt) as caught:
        api.sessions_with_tag(TAG, deadline=later(60))
    timer.join()
    assert time.monotonic() - before < 10
    assert not [text for text in frames(caught.value) if KEY in text]
    assert server.requests == []


def test_the_key_is_in_no_frame_after_a_429_that_repeats_it(server, api):
    server.fail("GET", fs.body(f"no, {KEY}".encode(), 429))
    server.fail_always("GET", fs.reset)
    with pytest.raises(AnchorAPIError) as caught:
        api.sessions_with_tag(TAG, deadline=later(0.8))
    assert server.count("GET") >= 2
    assert not [text for text in frames(caught.value) if KEY in text]


def test_a_forked_child_keeps_the_pause(server, api):
    api._here().pause.extend(30)
    with api._here().pause._lock:  # as another thread might hold it
        child = os.fork()
        if child == 0:
            status = 1
            try:
                api._here().pause.extend(1)
                api.sessions_with_tag(TAG, deadline=later(2))
            except AnchorAPIError:
                status = 0
            finally:
                os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert server.requests == []


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
    assert AnchorAPI(f"http://127.0.0.1:{free_port()}", KEY).max_sessions(deadline=later(0.2)) is None
    assert time.monotonic() - before < 8


# ending


def test_end(server, api):
    mine, other = server.add(TAG), server.add("theirs")
    assert api.end(mine, TAG, deadline=later()) == Ended(already=False, note="")
    assert server.requests == [("DELETE", f"/v1/sessions/{mine}")]
    assert server.alive == [other]


@pytest.mark.parametrize("code", [200, 202, 204])
def test_success_without_a_body_is_believed(server, api, code):
    server.fail("DELETE", fs.body(b"", code))
    assert api.end("abc", TAG, deadline=later()) == Ended(already=False)
    assert server.count("GET") == 0


@pytest.mark.parametrize("content", [b"<html>welcome</html>", b"[]", b"null", b'{"error": {"message": "no"}}'])
def test_a_strange_success_is_settled_by_the_list(server, api, content):
    session_id = server.add(TAG)
    server.fail("DELETE", fs.body(content), fs.body(content))
    with pytest.raises(AnchorAPIError) as caught:
        api.end(session_id, TAG, deadline=later())
    assert caught.value.status == 200
    assert caught.value.what == f"end session {session_id}"
    server.end(session_id)
    assert api.end(session_id, TAG, deadline=later()) == Ended(already=True)


@pytest.mark.parametrize("code", [401, 404, 410])
def test_a_session_that_is_over_is_no_failure(server, api, code):
    server.already_over = code
    session_id = server.add(TAG)
    server.end(session_id)
    assert api.end(session_id, TAG, deadline=later()) == Ended(already=True, note="")
    assert api.end("unknown", TAG, deadline=later()) == Ended(already=True, note="")
    assert server.count("GET", "/v1/sessions/all/status") == 2


@pytest.mark.parametrize("code", [401, 404, 410])
def test_a_session_that_is_over_but_listed_as_alive_gets_a_note(server, api, code):
    session_id = server.add(TAG)
    server.fail("DELETE", fs.status(code))
    assert api.end(session_id, TAG, deadline=later()) == Ended(already=True, note="the API lists it as 'running'")


def test_a_note_speaks_of_the_right_session(server, api):
    server.add(TAG)
    over = server.add(TAG)
    server.end(over)
    assert api.end(over, TAG, deadline=later()).note == ""


@pytest.mark.parametrize("code", [401, 404, 410])
def test_a_revoked_key_is_a_failure(server, api, code):
    session_id = server.add(TAG)
    server.fail("DELETE", fs.status(code))
    server.keys.clear()
    with pytest.raises(AnchorAPIError, match="check ANCHORBROWSER_API_KEY") as caught:
        api.end(session_id, TAG, deadline=later())
    assert caught.value.status == 401
    assert caught.value.what == f"end session {session_id}"


def test_the_tries_are_those_of_the_ending(server, api):
    server.fail("DELETE", fs.status(500), fs.status(500), fs.status(401))
    server.fail_always("GET", fs.status(403))
    with pytest.raises(AnchorAPIError) as caught:
        api.end("abc", TAG, deadline=later())
    assert caught.value.tries == 3


def test_a_list_that_cannot_be_read_settles_nothing(server, api):
    server.fail("DELETE", fs.status(401))
    server.fail("GET", fs.body(b"<html>"))
    with pytest.raises(AnchorAPIError, match="end session abc: HTTP 200: “not JSON: <html>”. This is no answer"):
        api.end("abc", TAG, deadline=later())


@pytest.mark.parametrize(
    "fault",
    [
        fs.silent,
        fs.trickle(b""),
        fs.trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"),
        fs.trickle(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
    ],
    ids=["silence", "connection", "body", "endless"],
)
@pytest.mark.parametrize("method", ["DELETE", "GET"])
def test_an_answer_that_does_not_come_is_not_waited_for(server, api, method, fault):
    server.fail_always(method, fault)
    before = time.monotonic()
    with pytest.raises(AnchorAPIError, match="in time") as caught:
        if method == "DELETE":
            api.end(server.add(TAG), TAG, deadline=later(0.3))
        else:
            api.sessions_with_tag(TAG, deadline=later(0.3))
    assert time.monotonic() - before < 6
    assert caught.value.status is None


def test_calls_have_a_timeout_of_their_own(server, api, monkeypatch):
    assert AnchorAPI._call.__kwdefaults__["read"] == api_module.CALL_TIMEOUT == 15
    monkeypatch.setitem(AnchorAPI._call.__kwdefaults__, "read", 0.1)
    server.fail_always("DELETE", fs.silent)
    with pytest.raises(AnchorAPIError, match="no answer in time .tried 4 times.") as caught:
        api.end(server.add(TAG), TAG, deadline=later(30))
    assert caught.value.tries == 4


def test_an_answer_of_ten_megabytes_is_not_read(server, api):
    server.fail("DELETE", fs.body(b"x" * 10_000_000))
    with pytest.raises(AnchorAPIError, match="more than 1048576 bytes"):
        api.end(server.add(TAG), TAG, deadline=later())


def test_an_answer_that_is_just_not_too_long_is_read(server, api):
    server.fail("DELETE", fs.body(b'{"data": "' + b"x" * ((1 << 20) - 12) + b'"}'))
    assert api.end("abc", TAG, deadline=later()) == Ended(already=False)


def test_a_long_list_is_read(server, api):
    tags = [TAG, "x" * 200]
    items = [{"session_id": f"s{n}", "status": "running", "tags": tags} for n in range(5000)]
    server.fail("GET", fs.body(json.dumps({"data": {"items": items}}).encode()))
    assert len(api.sessions_with_tag(TAG, deadline=later())) == 5000


# the list


def test_list(server, api):
    mine, over = server.add("x", TAG), server.add(TAG)
    server.end(over)
    server.add("pytest-anchor:new=inv-2")
    listed = api.sessions_with_tag(TAG, deadline=later())
    assert listed == [Listed(mine, "running", ("x", TAG)), Listed(over, "completed", (TAG,))]
    assert [one.alive for one in listed] == [True, False]
    assert server.requests == [("GET", "/v1/sessions/all/status")]


def test_a_list_shows_what_carries_all_of_the_tags(server, api):
    server.add("a")
    both = server.add("b", "x", "a")
    server.add("b")
    assert [one.id for one in api.sessions_with_tag("a", "b", deadline=later())] == [both]
    items = [{"session_id": s.id, "status": "running", "tags": s.tags} for s in server.sessions.values()]
    server.fail("GET", fs.body(json.dumps({"data": {"items": items}}).encode()))  # it ignores the filter
    assert [one.id for one in api.sessions_with_tag("a", "b", deadline=later())] == [both]


NOW = "Thu, 01 Jan 2026 12:00:00 GMT"


def one_listed(api, server, created, date):
    """The one session of a list by a server whose clock shows *date*."""
    items = [{"session_id": "x", "status": "running", "tags": [TAG], "created_at": created}]

    def fault(handler, _act):
        handler.date_time_string = lambda: date
        return fs.ok({"items": items})

    server.fail("GET", fault)
    (listed,) = api.sessions_with_tag(TAG, deadline=later())
    return listed


@pytest.mark.parametrize(
    ("created", "age"),
    [
        ("2026-01-01T11:59:00Z", 60),
        ("2026-01-01T11:59:00.250Z", 59.75),
        ("2026-01-01T11:59:00.250000+00:00", 59.75),
        ("2026-01-01 13:59:00,5+02:00", 59.5),
        ("2026-01-01t06:29:00-0530", 60),
        ("2026-01-01T13:59:00+02", 60),
        (" 2025-12-31T12:00:00Z ", 86400),
        ("2026-01-01T12:00:10Z", -10),
        ("2026-01-01T11:59:00", None),  # of which place?
        ("2026-13-01T11:59:00Z", None),
        ("2026-01-01T11:59:00+99:00", None),
        ("٢٠٢٦-01-01T11:59:00Z", None),
        ("yesterday", None),
        ("", None),
        (1767268740, None),
        (None, None),
    ],
)
def test_the_age_of_what_is_listed_is_told_by_the_servers_clock(server, api, created, age):
    assert one_listed(api, server, created, NOW).age == (None if age is None else pytest.approx(age))


@pytest.mark.parametrize("date", ["", "now", "Thu, 99 Jan 2026 12:00:00 GMT", "\xff"])
def test_without_the_servers_clock_this_machines_tells(server, api, date):
    assert one_listed(api, server, "2026-01-01T00:00:00Z", date).age == pytest.approx(time.time() - 1767225600, abs=20)


@pytest.mark.parametrize("status", ["running", "active", "COMPLETED", "stopped", "", "None"])
def test_a_status_that_is_not_known_counts_as_alive(status):
    assert Listed("x", status, ()).alive


def test_strangers_and_nonsense_in_a_list_are_left_out(server, api):
    good = {"session_id": "good", "status": None, "tags": [TAG, 7, None]}
    items = [
        good,
        {"session_id": "stranger", "status": "running", "tags": ["theirs"]},
        {"session_id": "near", "status": "running", "tags": [TAG + "2", TAG[:-1]]},
        {"session_id": "no-tags", "status": "running"},
        {"session_id": "text", "status": "running", "tags": TAG},
        {"session_id": "null", "status": "running", "tags": None},
        {"session_id": "all", "status": "running", "tags": [TAG]},
        {"session_id": 7, "status": "running", "tags": [TAG]},
        {"status": "running", "tags": [TAG]},
        "text",
        None,
        [TAG],
    ]
    server.fail("GET", fs.body(json.dumps({"data": {"items": items}}).encode()))
    assert api.sessions_with_tag(TAG, deadline=later()) == [Listed("good", "None", (TAG,))]


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[]", b"{}", b'{"data": []}', b'{"data": {"items": {}}}', b'{"data": {"items": null}}']
)
def test_what_is_no_list_is_an_error(server, api, content):
    server.fail("GET", fs.body(content))
    with pytest.raises(AnchorAPIError, match="could not list the run's sessions: HTTP 200"):
        api.sessions_with_tag(TAG, deadline=later())


def test_a_list_with_another_status_is_an_error(server, api):
    server.fail("GET", fs.body(b'{"data": {"items": []}}', 206))
    with pytest.raises(AnchorAPIError, match="HTTP 206"):
        api.sessions_with_tag(TAG, deadline=later())


# words


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (400, "anchor_session_defaults"),
        (401, "ANCHORBROWSER_API_KEY"),
        (402, "credits"),
        (403, "cost limit"),
        (404, "--anchor-base-url"),
        (429, "fewer workers"),
        (418, "no answer of Anchor's API"),
        (500, "at the API's side"),
        (503, "at the API's side"),
    ],
)
def test_every_status_has_its_remedy(server, api, code, word):
    server.fail("POST", fs.status(code))
    with pytest.raises(AnchorAPIError) as caught:
        api.create({})
    expected = "looks for it by its tag" if code >= 500 else word
    assert expected in caught.value.remedy
    server.fail_always("GET", fs.status(code, **({"Retry_After": "30"} if code == 429 else {})))
    with pytest.raises(AnchorAPIError) as caught:
        api.sessions_with_tag(TAG, deadline=later())
    assert word in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b'{"error": {"code": "E7", "message": "the words"}}', "E7", "the words"),
        (b'{"error": "plain"}', "", "plain"),
        (b'{"error": {"code": 400}}', "400", '{"error": {"code": 400}}'),
        (b'{"error": null}', "", '{"error": null}'),
        (b'{"detail": "x"}', "", '{"detail": "x"}'),
        (b"", "", "no reason given"),
        (b"  ", "", "no reason given"),
        (b"<b>Bad Gateway</b>", "", "not JSON: <b>Bad Gateway</b>"),
        (b"\x1b[31m\xff", "", "not JSON: \\x1b[31m\ufffd"),
        (b'{"error": {"code": "\\u001b[2J", "message": "\\u001b]0;owned\\u0007"}}', "\\x1b[2J", "\\x1b]0;owned\\x07"),
        (b'{"error": {"message": ["a", 1]}}', "", "['a', 1]"),
        (b"x" * 1000, "", "not JSON: " + "x" * 289 + "…"),
    ],
)
def test_the_apis_own_words(server, api, content, code, message):
    server.fail("POST", fs.body(content, 400))
    with pytest.raises(AnchorAPIError) as caught:
        api.create({})
    assert (caught.value.code, caught.value.message) == (code, message)
    assert str(caught.value).isprintable()


# seals


def test_a_seal_depends_on_the_key_the_base_url_and_every_word():
    api = AnchorAPI("https://a.example", KEY)
    seals = [
        api.seal("inv-1", "id"),
        api.seal("inv-1", "id2"),
        api.seal("inv-2", "id"),
        api.seal("id", "inv-1"),
        api.seal("inv-1"),
        api.seal("inv-1id"),
        AnchorAPI("https://a.example", KEY + "x").seal("inv-1", "id"),
        AnchorAPI("https://a.example/x", KEY).seal("inv-1", "id"),
    ]
    assert len(set(seals)) == len(seals)
    assert AnchorAPI("https://a.example", KEY).seal("inv-1", "id") == seals[0]
    assert all(re.fullmatch("[0-9a-f]{32}", seal) for seal in seals)
    assert AnchorAPI("https://b.example", KEY).fingerprint == api.fingerprint != AnchorAPI("", "x").fingerprint


# processes and TLS


def test_a_forked_child_uses_connections_of_its_own(server, api):
    api.sessions_with_tag(TAG, deadline=later())
    assert server.connections == 1
    child = os.fork()
    if child == 0:
        status = 1
        try:
            api.sessions_with_tag(TAG, deadline=later())
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    api.sessions_with_tag(TAG, deadline=later())
    assert server.connections == 2


@pytest.fixture
def tls(tmp_path, monkeypatch):
    """A context for a TLS server on loopback that `requests` trusts."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("openssl is missing")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [openssl, "req", "-x509", *kind, "-keyout", key, "-out", cert, *name]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


def serve_tls(listener, context, asked):
    """Take every request in, and answer with a TLS record that cannot be decrypted."""
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        with plain, socket.socket(fileno=os.dup(plain.fileno())) as raw:
            try:
                with context.wrap_socket(plain, server_side=True) as secure:
                    asked.append(secure.recv(65536).split()[0])
                    raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
                    secure.recv(1)  # until the client has had enough
            except OSError:
                continue


@pytest.fixture
def broken_tls(tls):
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_tls, args=(listener, tls, asked))
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_a_post_is_not_repeated_when_tls_breaks_after_it(broken_tls, quick):
    url, asked = broken_tls
    with pytest.raises(AnchorLostCreateError):
        AnchorAPI(url, KEY).create({})
    assert asked == [b"POST"]


def test_a_delete_is_repeated_when_tls_breaks(broken_tls, quick):
    url, asked = broken_tls
    with pytest.raises(AnchorAPIError):
        AnchorAPI(url, KEY).end("abc", TAG, deadline=later())
    assert asked == [b"DELETE"] * 4


def test_a_certificate_that_is_not_trusted_creates_nothing(broken_tls, quick, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    url, asked = broken_tls
    with pytest.raises(AnchorAPIError, match="certificate verify failed") as caught:
        AnchorAPI(url, KEY).create({})
    assert type(caught.value) is AnchorAPIError
    assert asked == []
