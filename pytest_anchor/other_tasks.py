"""Whether a task that waits for a session waits for itself: no other task of its loop could end one meanwhile.

The broker refuses such a creation at once, where all that the plan allows is held by this very process. Where it cannot
be told for sure, the creation waits, as it does among threads.
"""

from __future__ import annotations

import os
from pathlib import Path
from sysconfig import get_paths
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_LIBRARIES = tuple({f"{path}{os.sep}" for name, path in get_paths().items() if name.endswith(("lib", "stdlib"))})
_HOME = f"{Path(__file__).parent}{os.sep}"  # a task may be nothing but an `aend()`
_FACTORY = f"{_HOME}async_session.py"


def can_end_a_session(current: object, others: Iterable[tuple[object, object, list[Any]]]) -> bool:
    """Whether a task might, which waits neither for the current one nor is nothing but another creation.

    :param others: of each other task of the loop, the task, its coroutine, and the tasks that it waits for.
    """
    able = [
        (task, awaited)
        for task, coroutine, awaited in others
        if not _is_creation(coroutine) and _may_be_the_suites(coroutine)
    ]
    blocked: set[object] = {current}
    while waiting := [task for task, awaited in able if task not in blocked and not blocked.isdisjoint(awaited)]:
        blocked.update(waiting)
    return any(task not in blocked for task, _ in able)


def _is_creation(coroutine: object) -> bool:
    """Whether a coroutine does nothing but create a session, and hand it over to the task that waits for it."""
    return getattr(getattr(coroutine, "cr_code", None), "co_filename", "") == _FACTORY


def _may_be_the_suites(coroutine: Any) -> bool:
    """Whether a coroutine is in code that may be the suite's: a library's own tasks, as Playwright's, end nothing."""
    if getattr(coroutine, "cr_await", None) is None:  # it has not begun, and may call what it was given
        return True
    while coroutine is not None:
        code = _first(coroutine, "cr_code", "gi_code", "ag_code")
        if code is None:
            return type(coroutine).__module__ == "builtins"  # what hides a coroutine; a future is of a module
        if code.co_filename.startswith(_HOME) or not code.co_filename.startswith(_LIBRARIES):
            return True
        coroutine = _first(coroutine, "cr_await", "gi_yieldfrom", "ag_await")
    return False


def _first(value: object, *names: str) -> Any:
    return next((getattr(value, name) for name in names if hasattr(value, name)), None)
