"""A registry with owners of limits in it, without their brokers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pytest_anchor.budget.limits import Admission, Limits
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
        return Limits(
            self.folder,
            folder,
            name,
            account="a",
            base_url="http://b",
            cap=cap,
            timeout=timeout,
            lives=lambda owner: (run, owner) not in self.dead,
        )

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
    meanwhile: Callable[..., None] = lambda **_: None,
    tell: Callable[[str], None] = lambda _text: None,
) -> Admission:
    waiting = limits.admission(test, tell)
    waiting.begin(nonce, self_blocked=self_blocked, meanwhile=meanwhile)
    return waiting


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + BUSY
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def in_background(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
