"""Which hosts are forwarded, and to whom, by what the browser reports."""

from __future__ import annotations

import pytest

from pytest_anchor.errors import AnchorConfigError
from pytest_anchor.forwarding.guard import Frames, Hosts, initiator, origin, site
from pytest_anchor.forwarding.sockets import Context, Sockets
from pytest_anchor.settings import check_hosts

HOSTS = Hosts(["localhost", "127.0.0.1", "[::1]", "*.localhost"])


@pytest.mark.parametrize(
    ("url", "included"),
    [
        ("http://localhost/", True),
        ("https://localhost:8443/a?b", True),
        ("http://LOCALHOST:80", True),
        ("http://user:pass@localhost/", True),
        ("ws://127.0.0.1:9/", True),
        ("http://[::1]:8000/", True),
        ("http://a.b.localhost/", True),
        ("blob:http://localhost:8000/0e1b", True),
        ("http://localhost.example/", False),
        ("http://localhost@example.com/", False),
        ("http://example.com/://localhost:8000/", False),
        ("http://example.com/?http://localhost/", False),
        ("http://notlocalhost/", False),
        ("http://127.0.0.12/", False),
        ("http://[::1", False),
        ("blob:null/0e1b", False),
        ("about:blank", False),
        ("null", False),
        ("://", False),
        ("", False),
    ],
)
def test_hosts(url: str, included: bool):
    assert HOSTS.include(url) is included


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"Origin": "http://shop.example", "Referer": "http://localhost/"}, "http://shop.example"),
        ({"Origin": "null", "Referer": "http://shop.example/page?a"}, "http://shop.example"),
        ({"Referer": "http://u:p@localhost:8000/page"}, "http://localhost:8000"),
        ({"Origin": "null"}, ""),
        ({}, ""),
    ],
)
def test_where_a_request_comes_from(headers: dict[str, str], named: str):
    assert initiator(headers) == named


def test_origins_and_sites():
    assert origin("http://user@localhost:8000/a") == "http://localhost:8000"
    assert origin("about:srcdoc") == ""
    assert site("ws://a.shop.localhost:1") == site("http://shop.localhost:2")
    assert site("http://127.0.0.1") != site("http://127.0.0.2")
    assert site("http://localhost") != site("https://localhost")


def frames(**urls: str) -> Frames:
    """Frames with processes of their own, by their ids."""
    known = Frames(HOSTS)
    for name, url in urls.items():
        known.attached({"targetId": name, "type": "page", "url": url, "browserContextId": f"context of {name}"})
    return known


def test_a_document_is_where_the_browser_says():
    known = frames(local="http://localhost:8000/", public="http://shop.example/")
    assert known.is_local("local")
    assert not known.is_local("public")
    assert not known.is_local("unknown")
    known.has_document("public", "http://localhost:8000")  # what a renderer reports does not outweigh the browser
    assert not known.is_local("public")


def test_a_document_without_an_address_is_its_parents():
    known = frames(local="http://localhost:8000/", public="http://shop.example/")
    for parent in ("local", "public"):
        known.has_parent(f"in {parent}", parent)
        known.attached(
            {"targetId": f"srcdoc in {parent}", "type": "iframe", "url": "about:srcdoc", "parentFrameId": parent}
        )
    assert [known.is_local(f"{kind}in {where}") for kind in ("", "srcdoc ") for where in ("local", "public")] == [
        True,
        False,
    ] * 2
    known.has_document("in local", "http://shop.example")
    assert not known.is_local("in local")
    assert known.browser_context("in local") == "context of local"
    assert not frames(blank="about:blank").is_local("blank")


def test_a_frame_that_is_gone():
    known = frames(local="http://localhost:8000/")
    known.has_parent("inner", "local")
    known.has_left("inner", "swap")
    assert known.is_local("inner")
    known.has_left("inner", "remove")
    assert not known.is_local("inner")
    known.detached("local")
    assert not known.is_page("local")


@pytest.mark.parametrize(
    ("source", "target", "allowed"),
    [
        ("http://localhost:8000", "ws://localhost:8001/", True),
        ("blob:http://localhost:8000/0e1b", "ws://127.0.0.1/", True),
        ("http://shop.example", "ws://localhost:8001/", False),
        ("://", "ws://localhost:8001/", False),
        ("http://localhost:8000", "ws://intranet.example/", False),
    ],
)
def test_sockets(source: str, target: str, allowed: bool):
    class Unconnected(Sockets):
        def __init__(self) -> None:
            self._hosts = HOSTS

    context = Context("session", 1, source, "frame", "")
    assert Unconnected().allow(context, target) is allowed


def test_hosts_that_are_given():
    given = "localhost, Shop.test,*.shop.test,10.0.0.7,[::1]"
    assert check_hosts("--anchor-forward-hosts", given) == "localhost,shop.test,*.shop.test,10.0.0.7,[::1]"


@pytest.mark.parametrize("value", ["*", "*.", "http://localhost", "localhost:8000", "a.*.b", "lo calhost", "::1"])
def test_hosts_that_are_none(value: str):
    with pytest.raises(AnchorConfigError, match="takes hosts separated by commas"):
        check_hosts("--anchor-forward-hosts", value)
