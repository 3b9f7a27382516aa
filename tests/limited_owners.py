"""A registry with owners of limits in it, without their brokers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pytest_anchor.budget.admission import Admission, Limits
from pytest_anchor.budget.file_store import FileStore
from pytest_anchor.budget.holders import SlotHolders
from pytest_anchor.registry.journal import Run

BUSY = 10.0  # seconds by which a machine with much to do may be late


class Registry:
    """Owners of one registry, whose runs' brokers live."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[str, Run] = {}
        self.dead: set[tuple[str, str]] = set()  # owners, with their runs

    def owner(self, name: str = "main", run: str = "inv", cap: int = 0, timeout: float = 30.0) -> Limits:
        if run not in self.runs:
            self.runs[run] = Run(self.folder / run)
            self.runs[run].join()
        folder = self.runs[run].folder
        holders = SlotHolders(folder, name, "http://b", lambda owner: (run, owner) not in self.dead)
        return Limits(FileStore(self.folder, "a", run, name), holders, cap=cap, timeout=timeout)

    @property
    def file(self) -> Path:
        return self.folder / "limits-a.json"

    @property
    def state(self) -> dict:
        return json.loads(self.file.read_text().partition("\n")[0])

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        for run in self.runs.values():
            run.leave()


def begin(
    limits: Limits,
    nonce: str = "n",
    *,
    self_blocked: bool = False,
    test: str = "t.py::x",
    between_polls: Callable[..., None] = lambda **_: None,
    report_wait: Callable[[str], None] = lambda _text: None,
) -> Admission:
    admission = limits.admission(test, report_wait)
    admission.wait(nonce, self_blocked=self_blocked, between_polls=between_polls)
    return admission


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + BUSY
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
