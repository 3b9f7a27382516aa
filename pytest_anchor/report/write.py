"""Writes the picture of a run into a file: whole, or not at all."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from .. import __version__
from .document import document_of
from .images import embedded
from .model import FAILURES, picture_of

if TYPE_CHECKING:
    from pathlib import Path

    from ..registry.records import State
    from .model import Status


def write_report(path: Path, state: State, status: Status, now: float, credits_used: float | None = None) -> None:
    """Write the picture of a run; the name of the file says in which form.

    :param now: in seconds since the epoch.
    :raises OSError: it cannot be written; what was there before stays.
    """
    picture = picture_of(state, status, now, credits_used)
    folder = path.parent.absolute()
    document = document_of(picture, str(folder))
    if path.name.endswith(".json"):
        text = json.dumps(document, separators=(",", ":")) + "\n"
    else:
        from .page import MOST_FAILURES, page_of

        failures = (test for test in document["tests"] if test["outcome"] in FAILURES)
        shown = (screenshot for test in islice(failures, MOST_FAILURES) for screenshot in test["screenshots"])
        text = page_of(document, __version__, embedded(shown, folder))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        unfinished.write_bytes(text.encode())
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
