"""What the picture of a run costs: from the record on disk to the file, and from the file to the screen."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from measure import ROOT, Figure, seconds

sys.path.append(str(ROOT / "tests"))

from pictures import busy
from playwright.sync_api import sync_playwright

from pytest_anchor.local.chromium import find
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.locks import JOURNAL
from pytest_anchor.report.write import write_report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

SIZES = ((100, 4), (10_000, 16))  # tests, and workers
ROUNDS = 3
DRAWN = "document.querySelector('#table tbody tr') && new Promise(done => requestAnimationFrame(() => done(true)))"


def figures() -> Iterator[Figure]:
    """The best of some rounds: what else this machine does is no cost of the picture."""
    with tempfile.TemporaryDirectory() as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(None), args=["--no-sandbox"])
        for tests, workers in SIZES:
            folder, page = Path(base, str(tests)), Path(base, f"{tests}.html")
            _record(folder, tests, workers)
            written, cpu = min(_write(folder, page) for _ in range(ROUNDS))
            opened = min(_open(browser, page) for _ in range(ROUNDS))
            size = f"{page.stat().st_size / 1e6:.1f} MB"
            aims = ("under 3 s", "under 2 s") if tests == SIZES[-1][0] else ("", "")
            yield Figure(
                f"picture of {tests:,} tests: read and written",
                f"{written:.2f} s",
                aims[0],
                f"{cpu:.2f} s of CPU; {size}",
            )
            yield Figure("the same, opened in Chromium", f"{opened:.2f} s", aims[1], "until it is drawn")
        browser.close()


def _record(folder: Path, tests: int, workers: int) -> None:
    folder.mkdir()
    run = busy(tests, workers, cap=40)
    (folder / JOURNAL).write_text("".join(f"{json.dumps(event)}\n" for event in run.events), encoding="utf-8")


def _write(folder: Path, page: Path) -> tuple[float, float]:
    """Seconds by the clock, and of this process."""
    cpu = time.process_time()
    taken = seconds(lambda: write_report(page, Run(folder).read(), "finished", time.time()))
    return taken, time.process_time() - cpu


def _open(browser: Browser, path: Path) -> float:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    try:
        return seconds(lambda: (page.goto(path.as_uri()), page.wait_for_function(DRAWN)))
    finally:
        page.close()
