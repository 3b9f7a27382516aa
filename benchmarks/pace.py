"""A suite that needs more creations than the plan allows at once, against the time that the plan itself imposes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from measure import answers, local_server, outcome, paced, start_pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from measure import Figure

TESTS, WORKERS, QUOTA, WINDOW = 60, 4, 20, 3  # seconds
LIMIT = (TESTS - 1) // QUOTA * WINDOW

SUITE = f"""
import pytest

@pytest.mark.parametrize("number", range({TESTS}))
def test_it(anchor_session, number):
    anchor_session()
"""


def figures() -> Iterator[Figure]:
    """From the first creation's answer to the last's, and how often the API refused one."""
    with tempfile.TemporaryDirectory() as base:
        folder, log = Path(base, "suite"), Path(base, "log")
        folder.mkdir()
        (folder / "test_it.py").write_text(SUITE, encoding="utf-8")
        with local_server("--rate", f"{QUOTA}/{WINDOW}", log=log) as env:
            outcome(start_pytest(folder, env, "-p", "xdist", f"-n{WORKERS}"))
        posts = answers(log, "POST")
    yield from paced(f"{TESTS} tests, {WORKERS} workers, {QUOTA} creations in {WINDOW} s", posts, TESTS, LIMIT)
