"""How soon what a crashed worker left is ended, against one after the other."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from measure import Figure, answers, local_server, outcome, start_pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SESSIONS, END = 400, 0.2  # seconds

SUITE = f"""
import os, time
from pathlib import Path

def test_it(anchor_session):
    for _ in range({SESSIONS}):
        anchor_session()
    Path("died").write_text(str(time.time()))
    os._exit(1)
"""


def figures() -> Iterator[Figure]:
    """From the worker's death to the last answer to a DELETE."""
    with tempfile.TemporaryDirectory() as base:
        folder, log = Path(base, "suite"), Path(base, "log")
        folder.mkdir()
        (folder / "test_it.py").write_text(SUITE, encoding="utf-8")
        with local_server("--end-latency", str(END), log=log) as env:
            outcome(start_pytest(folder, env, "-p", "xdist", "-n1", "--max-worker-restart=0"), 1)
        ended = [one for one in answers(log, "DELETE") if one.status == 200]
        died = float((folder / "died").read_text(encoding="utf-8"))
    assert len(ended) == SESSIONS
    took, in_turn = ended[-1].moment - died, SESSIONS * END
    yield Figure(
        f"{SESSIONS} sessions of a crashed worker, {END} s each: from its death to the last end, "
        "against one after the other",
        f"1/{in_turn / took:.1f}",
        "1/14 or less",
        f"{took:.2f} s against {in_turn:.0f} s; the sweep took {ended[-1].moment - ended[0].moment + END:.2f} s of it",
    )
