"""How long the first session of a run takes, and how soon a second Ctrl-C gives the prompt back."""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import requests
from measure import Figure, local_server, outcome, seconds, start_pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS = 9
COLLECTION = 1.0  # seconds
NEVER = 60.0  # seconds that the end of a session takes

FIRST = """
import time
from pathlib import Path

def test_it(anchor_session):
    start = time.perf_counter()
    anchor_session()
    Path("took").write_text(str(time.perf_counter() - start))
"""
HANGS = """
import time
from pathlib import Path

def test_it(anchor_session):
    anchor_session()
    Path("waits").touch()
    time.sleep(60)
"""


def figures() -> Iterator[Figure]:
    """The first creation of a run against a bare one; and from the second SIGINT to the end of the process."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _first_sessions(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        times = [_prompt(Path(folder)) for _ in range(3)]
    yield Figure(
        "a second Ctrl-C during a teardown that hangs: to the prompt", f"{max(times):.2f} s", "under 1 s", "the longest"
    )


def _first_sessions(folder: Path) -> Iterator[Figure]:
    (folder / "test_1.py").write_text(FIRST, encoding="utf-8")
    with local_server() as env:
        url, headers = env["ANCHORBROWSER_BASE_URL"], {"anchor-api-key": env["ANCHORBROWSER_API_KEY"]}
        bare = median(
            seconds(lambda: requests.post(f"{url}/v1/sessions", json={}, headers=headers, timeout=10))
            for _ in range(RUNS)
        )
        for name, rest, aim in (
            (f"whose collection goes on for {COLLECTION:g} s", f"import time; time.sleep({COLLECTION})", "50"),
            ("that is started cold", "", "400"),
        ):
            (folder / "test_2.py").write_text(rest, encoding="utf-8")
            took = []
            for _ in range(RUNS):
                outcome(start_pytest(folder, env))
                took.append(float((folder / "took").read_text(encoding="utf-8")))
            yield Figure(
                f"the first session of a run {name}, above a bare creation",
                f"{(median(took) - bare) * 1000:+.0f} ms",
                f"under {aim} ms",
                f"{median(took) * 1000:.1f} ms against {bare * 1000:.1f} ms",
            )


def _prompt(folder: Path) -> float:
    (folder / "test_it.py").write_text(HANGS, encoding="utf-8")
    waits = folder / "waits"
    waits.unlink(missing_ok=True)
    with local_server("--end-latency", str(NEVER)) as env:
        run = start_pytest(folder, env)
        while not waits.exists():
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        time.sleep(COLLECTION)  # its teardown has begun
        run.send_signal(signal.SIGINT)
        start = time.perf_counter()
        run.wait()
        took = time.perf_counter() - start
        assert run.stdout is not None
        run.stdout.close()
    return took
