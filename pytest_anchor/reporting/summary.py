"""The summary of a run: the terminal section, and a test's own section."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import AnchorAPIError, AnchorError, printable
from ..settings import DEFAULT_BASE_URL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..cleanup.recovery import Recovery
    from ..registry.records import Record, State

KEPT_FILE = "kept.txt"  # in the run's folder
SHOWN = 20  # failures that are written out; the rest is in the journal

YELLOW = {"yellow": True}

_ENDED_BY = {
    "test": "ended by the tests",
    "teardown": "at teardown",
    "sweep": "by the sweep",
    "reaper": "by the reaper",
    "recovery": "by a later run",
    "keeper": "kept for a while",
}
_UNUSED = "prefetched, unused"


class Line(NamedTuple):
    """A line of the terminal section, with pytest's names of the colours it is shown in."""

    text: str
    markup: dict[str, bool] = {}  # noqa: RUF012 - never changed


class Report:
    """The summary of a run once its sweep is over.

    :param state: the run's record.
    :param folder: where the record is kept while something is open.
    :param links: whether it may show links, and the ids of sessions that have not leaked.
    """

    def __init__(self, state: State, folder: Path, *, links: bool = True) -> None:
        self.state = state
        self.links = links
        self.folder = folder
        self.problem: AnchorError | None = None  # why the sweep could not do its work
        self.interrupted = False  # whether it was cut short
        self.log: Path | None = None  # where the reaper that goes on writes what it does
        self.recovered: list[Recovery] = []  # what became of earlier runs
        self.kept: dict[str, tuple[float, str]] = {}  # until when, and the live view, by nonce
        self.keeper_pid = 0  # whose end ends them, where no key is known that could
        self.credits: float | None = None  # that its sessions have used, if the API tells
        self.refused = 0  # creations, as the budget was used up
        self.remarks: list[tuple[str, bool]] = []  # on evidence, and whether any is missing
        self.shared: list[Line] = []  # what there is to say of the server by which machines share the plan

    @property
    def created(self) -> list[Record]:
        """Sessions whose creation was confirmed."""
        return [record for record in self.state.records.values() if record.id is not None]

    @property
    def leaked(self) -> list[Record]:
        """Sessions that could not be confirmed to be over."""
        return [record for record in self.created if record.open and record.nonce not in self.kept]

    @property
    def unresolved(self) -> list[Record]:
        """Creations without a usable answer: each may have led to a session whose id is not known."""
        return [record for record in self.state.records.values() if record.unresolved]

    @property
    def failed(self) -> bool:
        """Whether a session could not be confirmed to be over, or the record does not tell."""
        # Without the API's list the record still has all that this machine created; without the record, nothing has.
        no_record = self.problem is not None and not isinstance(self.problem, AnchorAPIError)
        # What the API's list has not shown for seconds likely does not exist, as long as the reaper goes on looking.
        unseen = self.unresolved and (self.problem is not None or self.log is None)
        return bool(self.leaked or unseen or self.state.unreadable or no_record or self.interrupted)

    @property
    def settled(self) -> bool:
        """Whether the record is of no further use."""
        return not (self.failed or self.unresolved or self.kept)

    def __bool__(self) -> bool:
        state = self.state
        has_more = self.problem or self.recovered or self.shared
        return bool(self.created or self.unresolved or state.unreadable or has_more)

    def as_values(self, *, verbose: bool) -> dict[str, Any]:
        """What the test process needs of it, as plain built-ins."""
        return {
            "lines": list(self.lines(verbose=verbose)) if self else [],
            "failed": self.failed,
            "settled": self.settled,
            "interrupted": self.interrupted,
            "leaks": [
                {
                    "id": record.id,
                    "test": record.test,
                    "owner": record.owner,
                    "why": why(record),
                    "command": end_command(record) if record.id else "",
                }
                for record in (*self.leaked, *self.unresolved)
            ],
        }

    def lines(self, *, verbose: bool = False) -> Iterator[Line]:
        """The section, top to bottom."""
        if self.created or self.failed or self.unresolved:
            yield Line(self._counts(), {"red": True, "bold": True} if self.failed else {"green": not self.unresolved})
        for record in self.leaked[:SHOWN]:
            yield Line(f"LEAKED {title(record)}", {"red": True})
            yield Line(f"  {why(record)}")
            yield Line(f"  end it by hand: {end_command(record)}")
        for record in self.unresolved[:SHOWN]:
            yield Line(f"UNRESOLVED {title(record)}", YELLOW)
            yield Line(f"  no answer told its id, and the API lists no such session: {why(record)}")
        yield from self._kept_lines()
        noted = [record for record in self.created if record.note]
        for record in noted[:SHOWN]:
            note = printable(record.note)
            yield Line(f"NOTE {title(record)}: it is over by the API's answer, but {note}", YELLOW)
        if len(noted) > SHOWN:
            yield Line(f"NOTE and so are {len(noted) - SHOWN} more that the API lists otherwise", YELLOW)
        for record in self.created:
            if verbose and not (record.note or record.open):
                how = "already over" if record.already else _ENDED_BY.get(record.ended_by, "ended")
                yield Line(f"{title(record, links=self.links)}: {how}")
        yield from self._troubles()
        for remark, is_trouble in self.remarks:
            yield Line(remark, YELLOW if is_trouble else {})
        for recovery in self.recovered:
            yield from _recovery_lines(recovery)
        yield from self.shared

    def _kept_lines(self) -> Iterator[Line]:
        kept = [record for record in self.created if record.nonce in self.kept]
        for record in kept[:SHOWN]:
            until, live_view = self.kept[record.nonce]
            clock = time.strftime("%H:%M:%S", time.localtime(until))
            which = title(record, links=self.links)
            yield Line(f"KEPT {which}, until {clock}, which is in {span(until - time.time())}", YELLOW)
            if self.links:
                if live_view:
                    yield Line(f"  look at it: {printable(live_view, 1000)}")
                yield Line(f"  end it now: {self._end_kept_command(record)}")
        if kept and not self.links:
            yield Line(f"how to look at them, and to end them, is in {self.folder / KEPT_FILE}")
        if len(kept) > SHOWN:
            yield Line(f"KEPT {len(kept) - SHOWN} more", YELLOW)

    def kept_text(self) -> str:
        """How to look at what is kept, and how to end it."""
        return "".join(
            f"{title(record)}\n  {self.kept[record.nonce][1]}\n  {self._end_kept_command(record)}\n"
            for record in self.created
            if record.nonce in self.kept
        )

    def _end_kept_command(self, record: Record) -> str:
        return f"kill {self.keeper_pid}, with all that is kept" if self.keeper_pid else end_command(record)

    def _troubles(self) -> Iterator[Line]:
        if retried := sum(record.retried > 0 for record in self.state.records.values()):
            yield Line(f"{_count(retried, 'creation')} retried")
        if self.refused:
            yield Line(f"{_count(self.refused, 'creation')} refused: the run has used up its --anchor-budget", YELLOW)
        yield from self._waits()
        if unreadable := self.state.unreadable:
            yield Line(
                f"{_count(unreadable, 'line')} of the record cannot be read: sessions may be missing here",
                {"red": True},
            )
        if self.interrupted:
            yield Line("the sweep was interrupted before it was done", {"red": True})
        if self.problem is not None:
            yield Line(f"the sweep is incomplete: {self.problem}", YELLOW)
        if self.failed or self.unresolved:
            more = max(len(self.leaked), len(self.unresolved)) > SHOWN
            yield Line(f"{'all of them are' if more else 'this is'} on record in {self.folder}")
            if self.log is not None:
                yield Line(f"the reaper goes on trying; it writes to {self.log}")
            else:
                yield Line(f"the next run here tries again; so does: {self._sweep_command()}")

    def _waits(self) -> Iterator[Line]:
        waits = list(self.state.waits.values())
        for seconds, what in (
            ([wait.rate for wait in waits if wait.rate], "the plan's rate limit"),
            ([wait.slot for wait in waits if wait.slot], "a free browser slot"),
        ):
            if seconds:
                yield Line(f"{_count(len(seconds), 'creation')} waited {sum(seconds):.1f} s for {what}")
        if elsewhere := sum(wait.elsewhere for wait in waits):
            yield Line(f"{elsewhere:.1f} s of that for runs on other machines")

    def _sweep_command(self) -> str:
        """The command that goes on where this run has left off."""
        urls = {record.base_url for record in (*self.leaked, *self.unresolved)}
        return sweep_command(self.folder.parent, urls.pop() if len(urls) == 1 else "")

    def _counts(self) -> str:
        ended = Counter(map(_describe_end, (record for record in self.created if not record.open)))
        kept = sum(record.nonce in self.kept for record in self.created)
        parts = [
            f"{ended[words]} {words}"
            for words in (*_ENDED_BY.values(), "already over", _UNUSED, "ended")
            if ended[words]
        ]
        if kept:
            parts.append(f"{kept} kept")
        if self.leaked:
            parts.append(f"{len(self.leaked)} leaked")
        if self.unresolved:
            parts.append(f"{len(self.unresolved)} unresolved")
        created = f"{_count(len(self.created), 'session')} created" + (f": {', '.join(parts)}" if parts else "")
        return f"{created}{self._cost()}"

    @property
    def minutes(self) -> int:
        """For how long browsers have run."""
        return round(self.state.browser_seconds(time.time()) / 60)

    def _cost(self) -> str:
        minutes = self.minutes
        if not minutes:
            return ""
        return f"; {minutes} min of browser" + ("" if self.credits is None else f", {self.credits:.4g} credits")


def _describe_end(record: Record) -> str:
    if record.ahead:
        return _UNUSED
    return "already over" if record.already else _ENDED_BY.get(record.ended_by, "ended")


def teardown_section(failures: list[tuple[str, Exception]]) -> str:
    """The section of a test's own report on sessions that its teardown could not end."""
    return "\n".join(
        f"session {session_id} was not ended: {getattr(error, 'reason', error)}. "
        "It is recorded; the final sweep tries again."
        for session_id, error in failures
    )


def end_command(record: Record) -> str:
    """The command that ends one session by hand."""
    dashes = "-- " if str(record.id).startswith("-") else ""
    return f"python -m pytest_anchor end {_base_url_option(record.base_url)}{dashes}{record.id}"


def sweep_command(registry: Path, base_url: str) -> str:
    """The command that ends what dead runs left; an empty *base_url* names none."""
    return (
        f"python -m pytest_anchor sweep {_base_url_option(base_url)}--registry {shlex.quote(printable(str(registry)))}"
    )


def _base_url_option(base_url: str) -> str:
    return f"--base-url {shlex.quote(printable(base_url))} " if base_url not in ("", DEFAULT_BASE_URL) else ""


def describe(state: State) -> str:
    """What is left of a run, in a few words."""
    records = state.records.values()
    parts = [f"{_count(sum(record.open for record in records), 'session')} open"]
    if unresolved := sum(record.unresolved for record in records):
        parts.append(f"{_count(unresolved, 'creation')} unresolved")
    if state.unreadable:
        parts.append(f"{_count(state.unreadable, 'line')} unreadable")
    return ", ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _recovery_lines(recovery: Recovery) -> Iterator[Line]:
    run = f"the run that died {ago(recovery.died)}"
    if recovery.reaped:
        yield Line(f"the reaper ended {_count(len(recovery.reaped), 'session')} of {run}", {"green": True})
    if recovery.ended:
        yield Line(f"recovered {_count(len(recovery.ended), 'session')} of {run}", {"green": True})
    left = _count(len(recovery.left), "session")
    if recovery.stranger and recovery.left:
        yield Line(f"left alone: {left} of {run}, created with another key or base URL, or recorded elsewhere", YELLOW)
    elif recovery.left:
        yield Line(f"not yet recovered: {left} of {run}; the next run tries again", YELLOW)
        for record in recovery.left[:SHOWN]:
            yield Line(f"  {title(record)}: {why(record)}")
    if len(recovery.given_up) > SHOWN:
        yield Line(f"GAVE UP on {_count(len(recovery.given_up), 'session')} of {run}, among them:", {"red": True})
    for record in recovery.given_up[:SHOWN]:
        yield Line(f"GAVE UP on {title(record)}, a week after its creation: {why(record)}", {"red": True})
    if recovery.problem is not None:
        yield Line(f"the recovery of {run} is incomplete: {recovery.problem}", YELLOW)


def ago(moment: float) -> str:
    """How long ago *moment*, in seconds since the epoch, was, roughly."""
    return f"{span(time.time() - moment)} ago"


def span(seconds: float) -> str:
    """A time span, roughly: ``5 s``, ``12 min``, ``2 h``, ``3 d``; one below zero is ``0 s``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def title(record: Record, *, links: bool = True) -> str:
    """A session with its test and its worker, for a line of the summary.

    :param links: whether its id may be shown.
    """
    worker = "" if record.owner in ("main", "?") else f" [{printable(record.owner, 40)}]"
    relation = "ahead of" if record.ahead else "of"
    name = (record.id if links else "a session") if record.id else "a creation"
    return f"{name} {relation} {printable(record.test)}{worker}"


def why(record: Record) -> str:
    """Why a session could not be confirmed to be over."""
    if record.error is None:
        return "it was not ended" if record.id else "no answer had come when its run ended"
    error = AnchorAPIError("", **record.error)
    return f"{error.reason}. {error.remedy}".rstrip()
