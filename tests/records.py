"""Journal entries as a run writes them, for tests that want more of them than they want to create."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from pytest_anchor.registry.locks import JOURNAL
from pytest_anchor.tags import TAG, new_tag, run_tag

if TYPE_CHECKING:
    from pathlib import Path

    from fault_server import FaultServer

    from pytest_anchor.api import AnchorAPI
    from pytest_anchor.registry.journal import Run

# What is no session id, or must not be taken for one.
NO_IDS = [
    "all",
    "ALL",
    "All",
    "aLl",
    "../all",
    "x/../all",
    "%61ll",
    "all\n",
    "abc\n",
    "",
    " ",
    "a b",
    "a/b",
    "a?b",
    "a#b",
    "a.b",
    ".",
    "..",
    "é",
    "ａll",
    "१२३",
    "x" * 129,
    "a,b",
    "a\x00",
    "a\x1b[2J",
]

ERROR = {"status": 500, "code": "E", "message": "m", "remedy": "r", "tries": 7}

INTENT = {
    "event": "intent",
    "nonce": "n",
    "owner": "gw0",
    "test": "t",
    "time": 2,
    "base_url": "",
    "fingerprint": "",
    "run_id": "r",
    "folder_inode": 1,
}


def journal_line(base: dict[str, Any], **changes: Any) -> bytes:
    """An event as a line of the journal; a change to ``None`` leaves the field out."""
    return json.dumps({name: value for name, value in {**base, **changes}.items() if value is not None}).encode()


def journal(run: Run) -> Path:
    """Where the run's events are."""
    return run.folder / JOURNAL


def tags(nonce: str, run_id: str = "r1") -> tuple[str, ...]:
    return TAG, run_tag(run_id), new_tag(nonce)


def intend(run: Run, nonce: str, **changes: Any) -> None:
    """Record the intent to create a session."""
    fields = {
        "owner": "main",
        "test": "t.py::x",
        "time": time.time(),
        "base_url": "http://b",
        "fingerprint": "f",
        "run_id": "r1",
        "folder_inode": run.folder_inode,
    }
    run.append("intent", nonce, **{**fields, **changes})


def intend_with(api: AnchorAPI, run: Run, nonce: str, **changes: Any) -> None:
    """Record the intent to create a session with *api*."""
    intend(run, nonce, **{"base_url": api.base_url, "fingerprint": api.fingerprint, **changes})


def opened(server: FaultServer, api: AnchorAPI, run: Run, nonce: str, **changes: Any) -> str:
    """A session that runs, and is on record."""
    session_id = server.add(*tags(nonce))
    intend_with(api, run, nonce, **changes)
    run.append("created", nonce, id=session_id, signature=api.sign(nonce, session_id))
    return session_id


def lost(server: FaultServer, api: AnchorAPI, run: Run, nonce: str, **changes: Any) -> str:
    """A session that runs, and of whose creation the record knows only that it was lost."""
    intend_with(api, run, nonce, **changes)
    run.append("lost", nonce, time=changes.get("time", time.time()), error=ERROR)
    return server.add(*tags(nonce))
