import json
import time

import fault_server as fs
import pytest
from api_calls import TAG, later

from pytest_anchor.api import Listed
from pytest_anchor.errors import AnchorAPIError

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
        (418, "not an answer of Anchor's API"),
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
