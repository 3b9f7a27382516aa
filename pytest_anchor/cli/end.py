"""``end``: ends sessions by their ids."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ..cleanup.ending import TOO_LATE, EndsSessions, end_in_parallel
from ..errors import AnchorAPIError, printable
from ..reporting.progress import Console, Progress
from ..settings import check_seconds
from ..tags import TAG, is_session_id
from .common import api_for, print_error, print_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from ..api import AnchorAPI, Ended

    Outcomes = dict[str, Ended | AnchorAPIError]


def end(arguments: argparse.Namespace) -> int:
    """End sessions by their ids."""
    deadline = time.monotonic() + check_seconds("--timeout", arguments.timeout)
    ids = dict.fromkeys(arguments.ids, TAG)
    if arguments.dry_run:
        for session_id in ids:
            if is_session_id(session_id):
                print_line(f"would end {session_id}")
            else:
                print_error(f"{printable(repr(session_id), 80)} is not a session id, and would not be sent")
        return 1
    outcomes = end_all(api_for(arguments), ids, deadline, Progress(Console(sys.stderr)))
    for session_id, outcome in outcomes.items():
        if isinstance(outcome, AnchorAPIError):
            print_error(outcome)
        else:
            print_ended(session_id, outcome, "already over, or no session of this account")
    return 1 if any(isinstance(outcome, AnchorAPIError) for outcome in outcomes.values()) else 0


def end_all(
    api: AnchorAPI, sessions: Mapping[str, str], deadline: float, progress: Progress, *, again: bool = False
) -> Outcomes:
    """End sessions, several at once, by daemon threads: no API can hold this longer than it may take.

    :param sessions: a tag that it carries for each id.
    :param again: whether those that fail will be tried again.
    :returns: what became of each, in the order of *sessions*.
    """

    class Ends(EndsSessions):
        def end(self, session: str, deadline: float) -> Ended | AnchorAPIError:
            try:
                return api.end(session, sessions[session], deadline=deadline)
            except AnchorAPIError as error:
                return error

        def progress(self, done: int, total: int) -> None:
            progress(done, total)

    try:
        outcomes = end_in_parallel(sessions, Ends(), api, deadline=deadline, again=again)
    finally:
        progress.clear()
    remedy = "Try again, with a longer --timeout."
    late = {
        session_id: AnchorAPIError(f"end session {printable(session_id)}", message=TOO_LATE, remedy=remedy)
        for session_id in sessions
    }
    return {session_id: outcomes.get(session_id, late[session_id]) for session_id in sessions}


def print_ended(session_id: str, ended: Ended, already: str = "already over") -> None:
    """Write what became of a session that is over."""
    became = already if ended.already else "ended"
    print_line(f"{printable(session_id)}: {f'already over, but {ended.note}' if ended.note else became}")
