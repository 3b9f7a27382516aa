"""What the API makes of requests: bodies, queries, limits, keys, hosts."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from backend import Backend, until

from pytest_anchor.local.config import Config
from pytest_anchor.local.sessions import Sessions
from pytest_anchor.local.usage import Use, history


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "not JSON"),
        ('{"session": {"timeout": {"idle_timeout": NaN}}}', "NaN"),
        ("[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ("[]", "must be an object"),
        ('{"session": 1}', "session must be an object"),
        ('{"session": {"tags": "a"}}', "session.tags must be a list"),
        ('{"session": {"tags": ["a", 1]}}', r"session.tags\[1\] must be a string"),
        ('{"session": {"tags": ["a,b"]}}', "comma"),
        ('{"session": {"initial_url": "file:///etc/passwd"}}', "initial_url"),
        ('{"session": {"timeout": {"max_duration": true}}}', "must be a number"),
        ('{"session": {"timeout": {"max_duration": 0}}}', "minutes"),
        ('{"session": {"timeout": {"idle_timeout": -2}}}', "minutes"),
        ('{"browser": {"headless": {"active": "yes"}}}', "must be true or false"),
        ('{"browser": {"viewport": {"width": 1.5}}}', "must be an integer"),
        ('{"browser": {"viewport": {"height": 0}}}', "10000"),
        ('{"identities": [1]}', "must be an object"),
        ('{"session": {"live_view": {"one_time_url": true}}, "browser": {"headless": {"active": true}}}', "headful"),
        ('{"session": {"proxy": {"active": true}}}', "real Anchor can"),
        ('{"browser": {"captcha_solver": {"active": true}}}', "real Anchor can"),
        ('{"browser": {"extra_stealth": {"active": true}}}', "real Anchor can"),
        ('{"browser": {"profile": {"name": "me", "persist": true}}}', "real Anchor can"),
        ('{"browser": {"extensions": ["x"]}}', "real Anchor can"),
        ('{"browser": {"pdf_viewer": {"active": false}}}', "real Anchor can"),
        ('{"identities": [{"id": "x"}]}', "real Anchor can"),
        ('{"integrations": [{"id": "x"}]}', "real Anchor can"),
    ],
)
def test_a_body_it_cannot_honour_is_refused(records: Backend, body: Any, words: str):
    for route in ("/v1/sessions", "/v1/sessions/async"):
        answer = records("POST", route, data=body)
        assert answer.status_code == 400
        assert re.search(words, answer.json()["error"]["message"])


def test_defaults_and_unknown_keys_are_accepted(records: Backend):
    records.create(
        session={"recording": {"active": True}, "timeout": {"max_duration": -1, "idle_timeout": -1}, "new": 1},
        browser={"adblock": {"active": True}, "pdf_viewer": {"active": True}, "captcha_solver": {"active": False}},
        identities=[],
        other={},
    )


def test_lists_filter_sort_and_page(backends: Callable[..., Backend]):
    backend = backends("--browserless")
    ids = [backend.create(session={"tags": ["all", f"n{i}", "odd" if i % 2 else "even"]})["id"] for i in range(12)]
    backend("DELETE", f"/v1/sessions/{ids[3]}")

    def status(**query: str) -> list[str]:
        items = backend("GET", "/v1/sessions/all/status", params=query).json()["data"]["items"]
        return [item["session_id"] for item in items]

    def page(**query: object) -> list[str]:
        return [each["id"] for each in whole(**query)["sessions"]]

    def whole(**query: object) -> dict[str, Any]:
        data: dict[str, Any] = backend("GET", "/v1/sessions", params=query).json()["data"]
        return data

    assert status() == ids
    assert status(tags="all,odd") == ids[1::2]
    assert status(tags="all, n3") == [ids[3]]
    assert status(tags="even,odd") == status(tags="none,all") == status(tags="al") == []
    assert whole()["total"] == 12
    assert whole()["total_pages"] == 2
    assert page() == ids[:10]
    assert page(page=2) == ids[10:]
    assert page(page=9) == []
    assert page(limit=20, sort_by="session_id", sort_order="desc") == sorted(ids, reverse=True)
    assert page(limit=20, sort_by="used_credits") == ids
    assert page(status="completed") == [ids[3]]
    assert page(search="OD,N1") == [ids[1], ids[11]]
    created = backend("GET", f"/v1/sessions/{ids[0]}").json()["data"]["created_at"]
    before = (datetime.fromisoformat(created.replace("Z", "+00:00")) - timedelta(seconds=1)).isoformat()
    assert status(created_from=created) == status(created_from=before) == ids
    assert ids[0] in status(created_to=created)
    assert status(created_to=before) == status(created_to="2020-01-01T00:00:00") == []
    assert status(proxy="false", playground="false") == ids
    assert status(proxy="true") == status(batch_id="b") == status(profile_name="p") == []


def test_new_tags_replace_the_old_ones(records: Backend):
    first, second = (records.create(session={"tags": ["run", name]})["id"] for name in ("a", "b"))

    def listed(tags: str) -> list[str]:
        items = records("GET", "/v1/sessions/all/status", params={"tags": tags}).json()["data"]["items"]
        return [item["session_id"] for item in items]

    records("PUT", f"/v1/sessions/{first}/tags", json={"tags": ["run", "outcome=failed"]})
    assert listed("run") == [first, second]
    assert listed("run,outcome=failed") == [first]
    assert listed("a") == []
    for body in ({}, {"tags": None}, {"tags": ["a,b"]}, {"tags": [1]}):
        answer = records("PUT", f"/v1/sessions/{first}/tags", json=body)
        assert (answer.status_code, answer.json()["error"]["message"][:4]) == (400, "tags")
    records("DELETE", f"/v1/sessions/{second}")
    records("DELETE", f"/v1/sessions/{second}/tags")
    assert listed("run") == [first]
    assert listed("b") == []


def test_credits(backends: Callable[..., Backend]):
    backend = backends("--browserless", "--credits-per-hour", "7200")
    over, running = backend.create()["id"], backend.create()["id"]

    def details(session_id: str) -> Any:
        return backend("GET", f"/v1/sessions/{session_id}").json()["data"]["credits_used"]

    time.sleep(0.1)
    backend("DELETE", f"/v1/sessions/{over}")
    used = details(over)
    assert 0.2 <= used < 10  # two a second
    assert details(running) == 0
    found = backend("GET", "/v1/sessions?sort_by=used_credits&sort_order=desc").json()["data"]["sessions"]
    assert [(each["id"], each["used_credits"]) for each in found] == [(over, used), (running, "N/A")]
    assert backend("GET", "/v1/billing").json()["data"]["credits_used"] == used


def test_history():
    """Mondays begin weeks; a period in which no session was created is left out."""
    monday, sunday = (
        datetime(2026, 11, 30, 23, 59, tzinfo=timezone.utc),
        datetime(2026, 12, 6, 0, 1, tzinfo=timezone.utc),
    )
    uses = [Use(sunday, 1800, 2.5), Use(monday, 3600, 1), Use(monday, 0, 0)]

    def periods(granularity: str, **more: int) -> dict[str, Any]:
        return history(uses, granularity, ["session_count", "credits_used"], more.get("page", 1), more.get("limit", 9))

    assert periods("day")["data"] == [
        {"date": "2026-11-30T00:00:00Z", "session_count": 2, "credits_used": 1},
        {"date": "2026-12-06T00:00:00Z", "session_count": 1, "credits_used": 2.5},
    ]
    assert [each["date"] for each in periods("hour")["data"]] == ["2026-11-30T23:00:00Z", "2026-12-06T00:00:00Z"]
    assert [each["date"] for each in periods("week")["data"]] == ["2026-11-30T00:00:00Z"]
    assert [each["date"] for each in periods("month")["data"]] == ["2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"]
    assert periods("week")["summary"]["total_session_hours"] == 1.5
    second = periods("day", page=2, limit=1)
    assert [each["session_count"] for each in second["data"]] == [1]
    assert second["pagination"] == {
        "current_page": 2,
        "total_pages": 2,
        "total_records": 2,
        "has_next": False,
        "has_prev": True,
    }


@pytest.mark.parametrize("query", ["granularity=year", "metrics=money", "page=0", "limit=1001", "from_date=x"])
def test_a_history_it_cannot_give_is_refused(records: Backend, query: str):
    answer = records("GET", f"/v1/sessions/history?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=11",
        "page=0",
        "page=x",
        "sort_by=x",
        "sort_order=x",
        "created_from=x",
        "created_to=x",
        "proxy=maybe",
        "domains=example.com",
    ],
)
def test_a_query_it_cannot_honour_is_refused(records: Backend, query: str):
    answer = records("GET", f"/v1/sessions?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.json()["error"]["message"]


def test_limits_open_again(backends: Callable[..., Backend]):
    backend = backends("--browserless", "--rate", "3/1", "--cap", "2")
    first = backend.create()["id"]
    backend.create()
    assert "Concurrent" in backend("POST", "/v1/sessions").json()["error"]["message"]
    backend("DELETE", f"/v1/sessions/{first}")
    # What was refused for the other limit is not counted.
    third = backend("POST", "/v1/sessions")
    if third.status_code == 200:
        backend("DELETE", f"/v1/sessions/{third.json()['data']['id']}")
    refused = until(lambda: backend("POST", "/v1/sessions").status_code == 429)
    assert refused
    backend("DELETE", "/v1/sessions/all")
    assert until(lambda: backend("POST", "/v1/sessions").status_code == 200, within=3)


def test_a_session_that_has_just_started_counts_once():
    async def create_two() -> None:
        sessions = Sessions(cap=2)
        sessions.create(Config.parse(b"{}"))
        await asyncio.sleep(0)
        assert len(list(sessions.find())) == 1
        sessions.create(Config.parse(b"{}"))
        await sessions.close()

    asyncio.run(create_two())


def test_latencies_and_ending_at_once_from_many(backends: Callable[..., Backend]):
    backend = backends("--browserless", "--create-latency", "0.2", "--end-latency", "0.2")
    made = backend("POST", "/v1/sessions")
    assert made.elapsed >= timedelta(seconds=0.2)
    path = f"/v1/sessions/{made.json()['data']['id']}"
    with ThreadPoolExecutor(4) as pool:
        codes = sorted(
            pool.map(lambda _: requests.delete(backend.url + path, headers=backend.http.headers).status_code, range(4))
        )
    assert codes == [200, 401, 401, 401]


def test_a_creation_whose_client_left_takes_place(backends: Callable[..., Backend]):
    backend = backends("--browserless", "--create-latency", "0.3")
    with pytest.raises(requests.Timeout):
        requests.post(f"{backend.url}/v1/sessions", headers=backend.http.headers, timeout=0.1)
    assert until(lambda: backend("GET", "/v1/sessions").json()["data"]["total"]) == 1


def test_the_key_guards_everything(records: Backend):
    for path in ("/", "/v1/sessions", "/v1/nothing", "/live/x", "/docs"):
        for headers in ({}, {"anchor-api-key": ""}, {"anchor-api-key": records.key[:-1]}, {"anchor-api-key": "\xe4"}):
            answer = requests.get(records.url + path, headers=headers, timeout=5)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, 401)


def test_what_is_not_there(records: Backend):
    assert records("GET", "/v1/nothing").json()["error"]["code"] == 404
    answer = records("PUT", "/v1/sessions")
    assert answer.json()["error"]["code"] == 405
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST:{port}", 200),
        ("[::1]:{port}", 200),
        ("evil.example:{port}", 403),
        ("127.0.0.1.evil.example:{port}", 403),
        ("127.0.0.1", 403),
        ("127.0.0.1:1", 403),
        ("", 403),
    ],
)
def test_only_its_own_names_are_hosts(records: Backend, host: str, status: int):
    host = host.format(port=urlsplit(records.url).port)
    assert records("GET", "/v1/billing", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "{url}", ""])
def test_pages_are_refused_even_with_the_key(records: Backend, origin: str):
    created = records.create()
    headers = {"Origin": origin.format(url=records.url)}
    assert records("GET", "/v1/billing", headers=headers).status_code == 403
    assert records("GET", "/?" + urlsplit(created["cdp_url"]).query, headers=headers).status_code == 403


def test_it_listens_on_loopback_only(records: Backend):
    port = urlsplit(records.url).port
    assert port
    with socket.create_server(("127.0.0.2", port)):
        pass  # which would fail if it listened on all addresses


def test_ipv6(backends: Callable[..., Backend]):
    backend = backends("--browserless", "--host", "::1")
    assert backend.url.startswith("http://[::1]:")
    assert backend.create()["cdp_url"].startswith("ws://[::1]:")


def test_a_given_key_is_not_printed(backends: Callable[..., Backend]):
    backend = backends("--browserless", "--key-from-stdin", stdin="geheim 1\n")
    assert backend.create()["cdp_url"].count("geheim%201") == 1
    assert backend.process.stdout
    assert "geheim" not in backend.stop() + backend.lines[0]


def test_without_a_browser_there_is_no_cdp(records: Backend):
    answer = records("GET", "/?" + urlsplit(records.create()["cdp_url"]).query)
    assert answer.status_code == 400
    assert "--browserless" in answer.json()["error"]["message"]


def test_timeouts(records: Backend):
    def dies(**timeout: float) -> str:
        return records.create(session={"timeout": timeout})["id"]

    idle = dies(idle_timeout=0.005, max_duration=-1)
    old = dies(idle_timeout=-1, max_duration=0.005)
    stays = dies(idle_timeout=-1, max_duration=-1)
    until(lambda: records.status(idle) == records.status(old) == "completed", within=3)
    assert records.status(stays) == "running"
    assert records("DELETE", f"/v1/sessions/{idle}").status_code == 401
