"""What a browser is to store of the cookies that a response sets."""

from __future__ import annotations

import time
from http.cookies import SimpleCookie

import pytest

from pytest_anchor.forwarding.cookies import header, to_store

URL, FOREIGN = "http://localhost:8000/echo", "http://127.0.0.1:8000"


def stored(text: str, source: str = "http://localhost:9000") -> list[dict[str, object]]:
    return to_store(SimpleCookie(text).values(), URL, source)


def test_attributes():
    (cookie,) = stored("a=1; Path=/shop; Domain=localhost; Secure; HttpOnly; SameSite=strict")
    described = {"name": "a", "value": "1", "url": URL, "domain": "localhost", "path": "/shop"}
    assert cookie == {**described, "secure": True, "httpOnly": True, "sameSite": "Strict"}


@pytest.mark.parametrize(
    ("attribute", "expires"),
    [
        ("Expires=Thu, 01 Jan 1970 00:01:40 GMT", 100.0),
        ("Expires=Thu, 01-Jan-1970 00:01:40 GMT", 100.0),
        ("Max-Age=0; Expires=Fri, 01 Jan 2100 00:00:00 GMT", 1.0),
        ("Max-Age=soon", None),
        (f"Max-Age={10**400}", None),
        ('Expires="Mon, 01 Jan 99999999999 00:00:00 GMT"', None),
        ("Max-Age=soon; Expires=Thu, 01 Jan 1970 00:01:40 GMT", 100.0),
        ("SameSite=sometimes", None),
    ],
)
def test_expiry(attribute: str, expires: float | None):
    assert stored(f"a=1; {attribute}")[0].get("expires") == expires


def test_an_age():
    (cookie,) = stored("a=1; Max-Age=60")
    assert cookie["expires"] == pytest.approx(time.time() + 60, abs=10)


def test_another_site():
    cookies = [{"name": name, "value": "1", "sameSite": kind} for name, kind in (("a", "Lax"), ("b", "None"))]
    assert header([*cookies, {"name": "c", "value": "1"}], URL, FOREIGN) == "b=1"
    assert [one["name"] for one in stored("a=1", FOREIGN)] == []
    assert [one["name"] for one in stored("a=1; SameSite=None", FOREIGN)] == []
    assert [one["name"] for one in stored("a=1; SameSite=None; Secure", FOREIGN)] == ["a"]
