"""A suite for pytest-playwright: browsers launched here, Anchor's by the switch, and Anchor's by hand.

Anchor is the local backend, with real Chromium.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from measure import local_server, outcome, ratio, start_pytest

from pytest_anchor.local.chromium import find

if TYPE_CHECKING:
    from collections.abc import Iterator

    from measure import Figure

SHORT = 200  # tests on one session
OWN, CREATE = 20, 2.0  # tests with a session of their own, which takes so many seconds to create

SUITE = """
import pytest

@pytest.mark.parametrize("number", range({}))
def test_it(page, number):
    page.set_content(f"<title>{{number}}</title>")
    assert page.title() == str(number)
"""
LAUNCHED = f"""
import pytest

@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args):
    return {{**browser_type_launch_args, "executable_path": {find(None)!r}}}
"""
BY_HAND = """
import os
import pytest
import requests

@pytest.fixture(scope={scope!r})
def browser(playwright):
    url = os.environ["ANCHORBROWSER_BASE_URL"] + "/v1/sessions"
    headers = {{"anchor-api-key": os.environ["ANCHORBROWSER_API_KEY"]}}
    answer = requests.post(url, headers=headers, json={{}}, timeout=60)
    answer.raise_for_status()
    created = answer.json()["data"]
    browser = playwright.chromium.connect_over_cdp(created["cdp_url"])
    yield browser
    browser.close()
    requests.delete(f"{{url}}/{{created['id']}}", headers=headers, timeout=60).raise_for_status()
"""
PLAYWRIGHT = ("-p", "pytest_playwright.pytest_playwright")
WITHOUT = ("-p", "no:pytest_anchor")
AHEAD = ("--anchor-prefetch", "2", "--anchor-end", "background")


def _seconds(tests: int, env: dict[str, str], *options: str, conftest: str = "") -> float:
    """How long a whole run takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (folder / "conftest.py").write_text(conftest, encoding="utf-8")
        (folder / "test_it.py").write_text(SUITE.format(tests), encoding="utf-8")
        return outcome(start_pytest(folder, env, *PLAYWRIGHT, *options))[0]


def figures() -> Iterator[Figure]:
    """Whole runs on one worker, their start included, one after the other."""
    with local_server(browsers=True) as env:
        launched = _seconds(SHORT, env, *WITHOUT, conftest=LAUNCHED)
        switched = _seconds(SHORT, env, "--anchor-playwright", "worker")
        by_hand = _seconds(SHORT, env, *WITHOUT, conftest=BY_HAND.format(scope="session"))
    suite = f"{SHORT} short Playwright tests, one session"
    against = f"against a launched Chromium (by hand: {by_hand / launched:.2f})"
    yield ratio(f"{suite}, {against}", switched, launched, "")
    yield ratio(f"{suite}, against fixtures by hand", switched, by_hand, "1.05 or less")
    with local_server("--create-latency", str(CREATE), browsers=True) as env:
        plain = _seconds(OWN, env, "--anchor-playwright", "test")
        by_hand = _seconds(OWN, env, *WITHOUT, conftest=BY_HAND.format(scope="function"))
        ahead = _seconds(OWN, env, "--anchor-playwright", "test", *AHEAD)
    suite = f"{OWN} of a session each, create {CREATE:g} s"
    yield ratio(f"{suite}, against fixtures by hand", plain, by_hand, "1.05 or less")
    yield ratio(f"{suite}: prefetch 2 and background ends, against without", ahead, plain, "0.6 or less")
