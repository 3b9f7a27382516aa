"""What a run's record comes to: the terminal section, the progress line, a test's own section."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from .errors import AnchorAPIError, AnchorError
from .settings import DEFAULT_BASE_URL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .registry import Record, State

SHOWN = 20  # failures that are written out; the rest is in the journal

_HOW = {"test": "ended by the tests", "teardown": "at teardown", "sweep": "by the sweep"}


class Line(NamedTuple):
    """A line of the terminal section, with pytest's names of the colours it is shown in."""

    text: str
    markup: dict[str, bool] = {}  # noqa: RUF012 - never changed


class Report:
    """What is to be said of a run once its sweep is over.

    :param state: the run's record.
    :param problem: why the sweep could not do its work, if so.
    :param journal: where the record is kept while something is open.
    """

    def __init__(self, state: State, problem: AnchorError | None, journal: str) -> None:
        records = list(state.records.values())
        self.created = [record for record in records if record.id is not None]
        self.leaked = [record for record in self.created if record.open]
        self.unresolved = [record for record in records if record.unresolved]
        self.unreadable = state.unreadable
        self.problem = problem
        self._journal = journal

    @property
    def failed(self) -> bool:
        """Whether a session could not be confirmed to be over, or nobody can say."""
        # Without the API's list the record still tells all that this machine created; without the record, nobody does.
        no_record = self.problem is not None and not isinstance(self.problem, AnchorAPIError)
        return bool(self.leaked or self.unreadable or no_record)

    @property
    def settled(self) -> bool:
        """Whether the record is of no further use."""
        return not (self.failed or self.unresolved)

    def __bool__(self) -> bool:
        return bool(self.created or self.unresolved or self.unreadable or self.problem)

    def lines(self, *, verbose: bool = False) -> Iterator[Line]:
        """The section, top to bottom."""
        yield Line(self._counts(), {"red": True, "bold": True} if self.failed else {"green": not self.unresolved})
        for record in self.leaked[:SHOWN]:
            yield Line(f"LEAKED {_where(record)}", {"red": True})
            yield Line(f"  {_why(record)}")
            yield Line(f"  end it by hand: {end_command(record)}")
        for record in self.unresolved[:SHOWN]:
            yield Line(f"UNRESOLVED {_where(record)}", {"yellow": True})
            yield Line(f"  no answer told its id, and the API lists no such session: {_why(record)}")
        for record in self.created:
            if record.note:
                yield Line(
                    f"NOTE {_where(record)}: it is over by the API's answer, but {record.note}", {"yellow": True}
                )
            elif verbose and not record.open:
                yield Line(f"{_where(record)}: {'already over' if record.already else _HOW.get(record.how, 'ended')}")
        if self.unreadable:
            yield Line(
                f"{self.unreadable} lines of the record cannot be read: sessions may be missing here", {"red": True}
            )
        if self.problem is not None:
            yield Line(f"the sweep is incomplete: {self.problem}", {"yellow": True})
        if not self.settled:
            more = max(len(self.leaked), len(self.unresolved)) > SHOWN
            yield Line(f"{'all of them are' if more else 'this is'} on record in {self._journal}")

    def _counts(self) -> str:
        ended = Counter("already over" if r.already else _HOW.get(r.how, "ended") for r in self.created if not r.open)
        parts = [f"{ended[how]} {how}" for how in (*_HOW.values(), "already over", "ended") if ended[how]]
        if self.leaked:
            parts.append(f"{len(self.leaked)} leaked")
        if self.unresolved:
            parts.append(f"{len(self.unresolved)} unresolved")
        plural = "session" if len(self.created) == 1 else "sessions"
        return f"{len(self.created)} {plural} created" + (f": {', '.join(parts)}" if parts else "")


def teardown_section(failures: list[tuple[str, AnchorAPIError]]) -> str:
    """What a test's own report says of sessions that its teardown could not end."""
    return "\n".join(
        f"session {session_id} was not ended: {error.reason}. It is recorded; the final sweep tries again."
        for session_id, error in failures
    )


def end_command(record: Record) -> str:
    """The command that ends one session by hand."""
    where = "" if record.base_url in ("", "?", DEFAULT_BASE_URL) else f"--base-url {record.base_url} "
    return f"python -m pytest_anchor end {where}{record.id}"


def _where(record: Record) -> str:
    worker = "" if record.owner in ("main", "?") else f" [{record.owner}]"
    return f"{record.id or 'a creation'} of {record.test}{worker}"


def _why(record: Record) -> str:
    if record.error is None:
        return "it was not ended" if record.id else "the process died while it waited for the answer"
    error = AnchorAPIError("", **record.error)
    return f"{error.reason}. {error.remedy}".rstrip()
