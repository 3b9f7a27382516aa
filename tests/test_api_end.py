import json
import time

import fault_server as fs
import pytest
from api_calls import TAG, later
from records import NO_IDS

from pytest_anchor.api import Ended
from pytest_anchor.api import caller as caller_module
from pytest_anchor.api.caller import Caller
from pytest_anchor.errors import AnchorAPIError

# ids


@pytest.mark.parametrize("value", NO_IDS)
def test_a_hostile_id_never_reaches_the_server(server, api, value):
    stranger = server.add("theirs")
    with pytest.raises(AnchorAPIError, match="this is not a session id, and was not sent") as caught:
        api.end(value, TAG, deadline=later())
    assert str(caught.value).isprintable()
    assert server.requests == []
    assert server.alive == [stranger]


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
    with pytest.raises(AnchorAPIError, match="end session abc: HTTP 200: “not JSON: <html>”. This is not an answer"):
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
    assert Caller.call.__kwdefaults__["read"] == caller_module.CALL_TIMEOUT == 15
    monkeypatch.setitem(Caller.call.__kwdefaults__, "read", 0.1)
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
