"""What evidence costs a test: of a session that tests share, so that nothing else is created or ended meanwhile."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from measure import Figure, local_server, outcome, start_pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS, ROUNDS = 40, 3
SUITE = """
import pytest

@pytest.fixture(scope="session")
def shared(session_anchor_session):
    return session_anchor_session()

@pytest.mark.parametrize("number", range({tests}))
def test_it(shared, number):
    assert {passes}
"""
KINDS = {
    "a test that passes, with --anchor-screenshot on": ("True", "--anchor-screenshot=on"),
    "a test that fails": ("False", "--anchor-screenshot=only-on-failure"),
}


def figures() -> Iterator[Figure]:
    """The milliseconds of a test that evidence adds to those of the same test without."""
    with tempfile.TemporaryDirectory() as base, local_server(browsers=True) as env:
        for number, (kind, (passes, option)) in enumerate(KINDS.items()):
            folder = Path(base, str(number))
            folder.mkdir()
            (folder / "test_it.py").write_text(SUITE.format(tests=TESTS, passes=passes), encoding="utf-8")
            status = 0 if passes == "True" else 1
            took = {
                one: min(outcome(start_pytest(folder, env, one), status)[0] for _ in range(ROUNDS))
                for one in ("--anchor-screenshot=off", option)
            }
            off, on = took.values()
            yield Figure(
                f"evidence of {kind}", f"{(on - off) / TESTS * 1000:+.1f} ms", "", f"{on:.2f} s of {off:.2f} s"
            )
