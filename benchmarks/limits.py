"""What a session costs on disk, with journal, cap and budget, late in a long run against early."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import shared_limits
from measure import ratio, seconds

from pytest_anchor.budget.admission import Limits
from pytest_anchor.budget.file_store import FileStore
from pytest_anchor.budget.holders import SlotHolders
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.locks import JOURNAL
from pytest_anchor.tags import new_nonce

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from measure import Figure

EARLY, LATE = 1_000, 100_000  # sessions
AT_ONCE = 200  # of them open
ROUNDS, SESSIONS = 15, 50

_INTENT: dict[str, Any] = {
    "owner": "main",
    "test": "tests/test_shop.py::test_basket[number]",
    "time": 1.8e9,
    "base_url": "https://api.anchorbrowser.io",
    "fingerprint": "0123456789abcdef",
    "run_id": "0123456789abcdef",
    "folder_inode": 12345678,
}
_CREATED: dict[str, Any] = {"id": "7d0c3f0e-0000-4000-8000-000000000000", "signature": "0123456789abcdef" * 2}
_ENDED: dict[str, Any] = {"ended_by": "teardown", "already": False, "note": ""}


def figures() -> Iterator[Figure]:
    """The bookkeeping of a session from its turn to its end, without any request."""
    with tempfile.TemporaryDirectory() as folder:
        works = {count: _session(Path(folder, f"{count}", ".pytest_anchor", "run"), count) for count in (EARLY, LATE)}
        costs: dict[int, list[float]] = {EARLY: [], LATE: []}
        for _ in range(ROUNDS):
            for count, work in works.items():
                costs[count].append(seconds(lambda: [work() for _ in range(SESSIONS)]) / SESSIONS)  # noqa: B023
    early, late = (median(costs[count]) for count in (EARLY, LATE))
    name = f"journal, cap and budget, a session at {LATE:,} against one at {EARLY:,}, {AT_ONCE} open"
    yield ratio(name, late, early, "flat within 1.2", "µs", 0)
    yield from shared_limits.figures()


def _session(folder: Path, before: int) -> Callable[[], None]:
    """What is done for one session of a run in which *before* have been."""
    run = Run(folder)
    run.join()
    store = FileStore(folder.parent, "bench", folder.name, "main")
    limits = Limits(store, SlotHolders(folder, "main"), cap=AT_ONCE + 1, timeout=60.0)

    def begin() -> str:
        nonce = new_nonce(folder.name)
        limits.admission("test", print).wait(nonce, self_blocked=False, between_polls=lambda **_: None)
        run.append("intent", nonce, **_INTENT)
        limits.record_success()
        run.append("created", nonce, **_CREATED)
        return nonce

    def end(nonce: str) -> None:
        run.append("ended", nonce, **_ENDED)
        limits.release_slots([nonce])

    journal = folder / JOURNAL
    end(begin())
    journal.write_bytes(journal.read_bytes() * before)
    for _ in range(AT_ONCE):
        begin()
    return lambda: end(begin())
