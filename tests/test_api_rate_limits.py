import random
import time

import fault_server as fs
import pytest
from api_calls import TAG, later, when
from fault_server import KEY

from pytest_anchor.api import AnchorAPI
from pytest_anchor.api.headers import parse_limit
from pytest_anchor.errors import AnchorAPIError, Limit

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
    assert parse_limit({"Retry-After": value, "Date": DAY}) == Limit(seconds, None, None)


@pytest.mark.parametrize("date", [None, "", "now", "Thu, 99 Jan 2026 12:00:00 GMT"])
def test_without_the_answers_date_this_machines_clock_tells(date):
    told = parse_limit({"Retry-After": when(10)} | ({} if date is None else {"Date": date}))
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
    assert parse_limit({"RateLimit-Policy": header}) == Limit(None, *policy)
    assert time.monotonic() - before < 8


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
        told = parse_limit({"Retry-After": text, "RateLimit-Policy": text, "Date": text})
        assert told.retry_after is None or 0 <= told.retry_after <= 3600
        assert (told.quota is None) == (told.window is None)


def told_by(server, api, method, headers):
    server.fail_always(method, lambda *_: (429, headers, b""))
    calls = {
        "POST": lambda: api.create({}),
        "GET": lambda: api.sessions_with_tag(TAG, deadline=later(0.2)),
        "DELETE": lambda: api.end("abc", TAG, deadline=later(0.2)),
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
