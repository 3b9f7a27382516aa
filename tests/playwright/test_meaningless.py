"""What has no meaning for Anchor's browsers: said once, with a remedy; and what a launch's options come to."""

from __future__ import annotations

import pytest

from pytest_anchor.playwright.meaningless import creation_of


def creation(**options: object) -> tuple[dict[str, object], float, list[str]]:
    remarks: list[str] = []
    found = creation_of(options, remarks.append)
    return found.keywords, found.slow_mo, remarks


@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        ({}, {}),
        ({"headless": None, "args": [], "timeout": 5, "handle_sigint": False, "devtools": False}, {}),
        ({"headless": False}, {"browser": {"headless": {"active": False}}}),
        ({"args": ["--headless=new", "--no-sandbox"]}, {"browser": {"headless": {"active": True}}}),
        ({"args": ["--window-size=800,600"]}, {"browser": {"viewport": {"width": 800, "height": 600}}}),
        ({"args": ["--disable-web-security"]}, {"browser": {"disable_web_security": {"active": True}}}),
        (
            {"proxy": {"server": "proxy.test:3128", "username": "u", "password": "p"}},
            {
                "session": {
                    "proxy": {
                        "active": True,
                        "type": "custom",
                        "server": "http://proxy.test:3128",
                        "username": "u",
                        "password": "p",
                    }
                }
            },
        ),
        (
            {"args": ["--proxy-server=https://proxy.test"]},
            {
                "session": {
                    "proxy": {
                        "active": True,
                        "type": "custom",
                        "server": "https://proxy.test",
                        "username": "",
                        "password": "",
                    }
                }
            },
        ),
    ],
)
def test_what_has_a_meaning_becomes_a_creations_keyword(options: dict[str, object], keywords: dict[str, object]):
    assert creation(**options) == (keywords, 0.0, [])


def test_slow_motion_is_playwrights():
    assert creation(slow_mo=50) == ({}, 50.0, [])


@pytest.mark.parametrize(
    ("options", "remark"),
    [
        ({"channel": "chrome"}, "launch option channel='chrome' has no meaning.*leave the channel away"),
        ({"executable_path": "/usr/bin/chromium"}, "executable_path='/usr/bin/chromium' has no meaning"),
        ({"args": ["--lang=de"]}, "args='--lang=de' has no meaning.*anchor_session_defaults"),
        ({"env": {"SECRET": "x"}}, "launch option env has no meaning"),
        ({"devtools": True}, "live view"),
        ({"proxy": {"server": "a:1", "bypass": "b"}}, "proxy.bypass has no meaning"),
        ({"future": 1}, "future=1 has no meaning.*without --anchor-playwright"),
    ],
)
def test_what_has_none_is_said(options: dict[str, object], remark: str):
    _, _, remarks = creation(**options)
    assert len(remarks) == 1
    with pytest.raises(AssertionError, match=remark):
        raise AssertionError(remarks[0])
