"""A suite that waits for its sessions: as fast as the limit, and never slower than hand-written."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from measure import local_server, outcome, ratio, start_pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from measure import Figure

TESTS, TEST, CREATE, END = 30, 0.5, 1.0, 0.3  # seconds
LIMIT = CREATE + TESTS * TEST + END

SUITE = f"""
import time, pytest

@pytest.mark.parametrize("number", range({TESTS}))
def test_it(anchor_session, number):
    anchor_session()
    time.sleep({TEST})
"""

WITHOUT = ("-p", "no:pytest_anchor")
BY_HAND = """
import os, pytest, requests

@pytest.fixture
def anchor_session():
    url = os.environ["ANCHORBROWSER_BASE_URL"] + "/v1/sessions"
    headers = {"anchor-api-key": os.environ["ANCHORBROWSER_API_KEY"]}
    created = []

    def create():
        answer = requests.post(url, headers=headers, json={}, timeout=60)
        answer.raise_for_status()
        created.append(answer.json()["data"]["id"])

    yield create
    for one in created:
        requests.delete(f"{url}/{one}", headers=headers, timeout=60).raise_for_status()
"""


def figures() -> Iterator[Figure]:
    """Whole pytest processes, their start included; the slow ones run side by side."""
    latency = ("--create-latency", str(CREATE), "--end-latency", str(END))
    with local_server(*latency) as env, tempfile.TemporaryDirectory() as base:

        def run(name: str, *options: str, conftest: str = "") -> float:
            folder = Path(base, name)
            folder.mkdir()
            (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
            (folder / "conftest.py").write_text(conftest, encoding="utf-8")
            (folder / "test_it.py").write_text(SUITE, encoding="utf-8")
            return outcome(start_pytest(folder, env, *options))[0]

        fast = run("fast", "--anchor-prefetch", "2", "--anchor-end", "background")
        with ThreadPoolExecutor(2) as pool:
            plain, by_hand = (
                future.result()
                for future in (pool.submit(run, "plain"), pool.submit(run, "by_hand", *WITHOUT, conftest=BY_HAND))
            )
    suite = f"{TESTS} tests of {TEST} s, create {CREATE:g} s, end {END} s"
    for name, measured, against, aim in (
        (f"{suite}: prefetch 2 and background ends, against the limit", fast, LIMIT, "1.15 or less"),
        ("the same by hand, against the limit", by_hand, LIMIT, ""),
        ("the same with nothing switched on, against by hand", plain, by_hand, "1.0 or less"),
    ):
        yield ratio(name, measured, against, aim)
