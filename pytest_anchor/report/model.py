"""What a run's record comes to as a picture: lanes, sessions, tests, and what they add up to.

Pure: a record in, data out. Moments are in seconds since the run began.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..registry.records import Wait
from ..reporting.summary import end_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..registry.records import Record, State, Tested

Span = tuple[float, float]
Status = Literal["finished", "interrupted", "killed", "running"]

INEXACT = 0.03  # seconds by which a test may seem to begin after what it asks for
FAILURES = ("failed", "error")
AFTER_DEATH = ("reaper", "recovery")  # what ends sessions of a run that is dead


class Waits(NamedTuple):
    """Seconds for which a test waited.

    :param rate: for the plan's rate limit.
    :param slot: for another session to end.
    :param create: for the API to create a session.
    :param end: for the API to end one.
    """

    rate: float = 0.0
    slot: float = 0.0
    create: float = 0.0
    end: float = 0.0


class TimedTest(NamedTuple):
    """One run of a test that had a session.

    :param lane: index of the process that it ran in.
    :param rerun: how often it had run before.
    :param sessions: indices of those that it had.
    :param screenshots: paths of its screenshots.
    """

    test: str
    lane: int
    began: float
    ended: float
    outcome: str
    rerun: int
    sessions: list[int]
    waits: Waits
    screenshots: list[str]


class TimedSession(NamedTuple):
    """A session, or a creation of which it is not known what it came to.

    :param lane: index of the process that it was created for.
    :param test: the test that it was created for, or that took it.
    :param asked: when the creation began to wait for the plan's limits.
    :param slot: seconds for which it waited for another session to end; the rest of the wait was for the rate limit.
    :param begun: when the request was sent.
    :param lost: when waiting for the answer was given up, ``None`` if there was one.
    :param created: when the session was there, or was found; ``None`` if it never was.
    :param ending: when its end began, ``None`` if it never did.
    :param ended: when it was confirmed to be over, ``None`` if it was not.
    :param state: ``ended``, ``open``, ``kept`` open for a while, or ``lost`` if it may be open.
    :param ended_by: ``test``, ``teardown``, ``keeper``, ``sweep``, ``reaper``, ``recovery``, or ``""``.
    :param already: whether it was over when its end was tried.
    :param ahead: whether it was created before a test asked for it.
    :param unused: whether no test ever did.
    :param waited: seconds for which a test waited for what was created ahead.
    :param retried: how often the creation had failed before.
    :param tests: indices of the tests that had it.
    :param id: where it may be open; else ``None``, since ids are credentials.
    :param command: that ends it there.
    :param recordings: paths of its recordings.
    """

    lane: int
    test: str
    asked: float
    slot: float
    begun: float
    lost: float | None
    created: float | None
    ending: float | None
    ended: float | None
    state: str
    ended_by: str
    already: bool
    ahead: bool
    unused: bool
    waited: float
    retried: int
    tests: list[int]
    id: str | None
    command: str | None
    recordings: list[str]

    @property
    def answered(self) -> float:
        """When the wait for the creation was over."""
        return self.lost or self.created or self.begun

    @property
    def end_span(self) -> Span | None:
        """When its end was under way."""
        return None if self.ending is None or self.ended is None else (self.ending, self.ended)


class Picture(NamedTuple):
    """A run as data.

    :param began: in seconds since the epoch.
    :param cap: sessions at once, 0 where no number is known.
    :param quota: creations that the API allows in a *window* of seconds, 0 where no number is known.
    :param lanes: the names of the run's processes.
    :param live: how many sessions are open from each moment on.
    :param credits: that its sessions have used, ``None`` if the API did not tell.
    """

    began: float
    seconds: float
    status: Status
    run_id: str
    cap: int
    quota: int
    window: float
    prefetch: int
    end_in_background: bool
    lanes: list[str]
    sessions: list[TimedSession]
    tests: list[TimedTest]
    live: list[tuple[float, int]]
    limit_waits: dict[str, list[float]]
    counts: dict[str, int]
    credits: float | None

    @property
    def peak(self) -> int:
        """The most sessions that were open at once."""
        return max((number for _, number in self.live), default=0)

    @property
    def browser_seconds(self) -> float:
        """For how long sessions were open, in all."""
        return sum(
            (self.seconds if session.ended is None else session.ended) - session.created
            for session in self.sessions
            if session.created is not None
        )


def picture_of(state: State, status: Status, now: float, credits_used: float | None = None) -> Picture:
    """What the record of a run shows.

    :param now: in seconds since the epoch.
    """
    began, ended = _span(state, now, is_running=status == "running")
    shown = [record for record in list(state.records.values()) if record.state != "refused"]
    lanes = sorted({record.owner for record in shown}, key=_natural)
    lane_of = {name: number for number, name in enumerate(lanes)}
    had: defaultdict[tuple[int, float, str], list[int]] = defaultdict(list)
    tested: dict[tuple[int, float, str], Tested] = {}
    for number, record in enumerate(shown):
        for test in record.tests.values():
            key = lane_of[record.owner], test.began, test.test
            had[key].append(number)
            tested[key] = test
    keys = sorted(had)
    tests_of: defaultdict[int, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        for session in had[key]:
            tests_of[session].append(number)
    sessions = [
        _timed_session(
            record,
            state.waits.get(record.nonce, Wait(0.0, 0.0)),
            began,
            lane=lane_of[record.owner],
            tests=tests_of[number],
            state=_state(record, now),
        )
        for number, record in enumerate(shown)
    ]
    return Picture(
        began=began,
        seconds=_round(ended - began),
        status=status,
        run_id=next((record.run_id for record in shown if record.run_id), ""),
        cap=state.facts.cap,
        quota=state.quota,
        window=state.window,
        prefetch=state.facts.prefetch,
        end_in_background=state.facts.end_in_background,
        lanes=lanes,
        sessions=sessions,
        tests=list(_timed_tests([(key, tested[key], had[key]) for key in keys], sessions, shown, began)),
        live=_live(sessions),
        limit_waits={
            "rate": [wait.rate for wait in state.waits.values() if wait.rate],
            "slot": [wait.slot for wait in state.waits.values() if wait.slot],
            "elsewhere": [wait.elsewhere for wait in state.waits.values() if wait.elsewhere],
        },
        counts=_counts(state, sessions),
        credits=credits_used,
    )


def union(spans: Iterable[Span]) -> float:
    """Seconds that lie in any of the *spans*."""
    total, until = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(ended - max(began, until), 0.0)
        until = max(until, ended)
    return total


def clip(span: Span, within: Span) -> Span:
    """What of *span* lies *within* another; one without length if nothing does."""
    began = max(span[0], within[0])
    return began, max(min(span[1], within[1]), began)


def _span(state: State, now: float, *, is_running: bool) -> Span:
    moments = [now] if is_running else []
    for record in state.records.values():
        lost = _lost_at(record)
        known = (record.begun_at, lost, record.created_at, record.end_begun_at, record.ended_at)
        moments += [moment for moment in known if moment]
        for test in record.tests.values():
            moments += [test.began, test.ended]
        if record.begun_at and (wait := state.waits.get(record.nonce)):
            moments.append(record.begun_at - wait.rate - wait.slot)
    return min(moments, default=now), max(moments, default=now)


def _lost_at(record: Record) -> float | None:
    """When waiting for the answer was given up."""
    return record.time if record.begun_at is not None and record.time > record.begun_at else None


def _state(record: Record, now: float) -> str:
    if record.unresolved:
        return "lost"
    if record.open:
        return "kept" if (record.kept_until or 0.0) > now else "open"
    return "ended"


def _timed_session(
    record: Record, wait: Wait, run_began: float, *, lane: int, tests: list[int], state: str
) -> TimedSession:
    begun = record.begun_at or record.created_at or run_began
    lost = _lost_at(record)
    created = max(record.created_at or 0.0, begun) if record.id else None
    since = begun if created is None else created  # a clock that was set back makes no negative span
    ending = None if record.end_begun_at is None else max(record.end_begun_at, since)
    ended = max(record.ended_at or 0.0, ending or since) if record.state == "ended" else None

    def moment(time: float | None) -> float | None:
        return None if time is None else _round(time - run_began)

    return TimedSession(
        lane=lane,
        test=record.test,
        asked=_round(max(begun - wait.rate - wait.slot - run_began, 0.0)),
        slot=wait.slot,
        begun=_round(begun - run_began),
        lost=moment(lost),
        created=moment(created),
        ending=moment(ending),
        ended=moment(ended),
        state=state,
        ended_by=record.ended_by,
        already=record.already,
        ahead=record.ahead or record.taken,
        unused=record.ahead,
        waited=record.waited,
        retried=record.retried,
        tests=tests,
        id=record.id if state == "open" else None,
        command=end_command(record) if state == "open" else None,
        recordings=_evidence(record, "recording"),
    )


def _timed_tests(
    tests: list[tuple[tuple[int, float, str], Tested, list[int]]],
    sessions: list[TimedSession],
    records: list[Record],
    run_began: float,
) -> Iterator[TimedTest]:
    asked: defaultdict[tuple[int, str], list[tuple[float, int]]] = defaultdict(list)
    for number, session in enumerate(sessions):
        if not session.ahead:
            asked[session.lane, session.test].append((session.begun, number))
    for begins in asked.values():
        begins.sort()
    for (lane, _, name), test, had in tests:
        within = _round(test.began - run_began), _round(test.ended - run_began)
        begins = asked[lane, name]
        first, last = bisect_left(begins, (within[0] - INEXACT, -1)), bisect_left(begins, (within[1], len(sessions)))
        created = [sessions[number] for _, number in begins[first:last]]
        waits = _waits(within, name, created, [sessions[number] for number in had])
        shown = [path for number in had for path in _evidence(records[number], "screenshot", name)]
        yield TimedTest(name, lane, *within, test.outcome, test.rerun, had, waits, shown)


def _evidence(record: Record, kind: str, test: str = "") -> list[str]:
    """The paths of what was kept of a session, and of one test where one is named."""
    return [kept.path for kept in record.evidence.values() if kept.kind == kind and test in ("", kept.test)]


def _waits(within: Span, name: str, created: list[TimedSession], had: list[TimedSession]) -> Waits:
    """What a test waited for.

    :param created: those whose creation it waited for.
    :param had: those that it had.
    """
    waiting = [clip((session.asked, session.begun), within) for session in created]
    creating = [clip((session.begun, session.answered), within) for session in created]
    ending = [clip(session.end_span, within) for session in had if session.end_span]
    taken = sum(session.waited for session in had if session.ahead and session.test == name)
    waited = union(waiting)
    create = union([*waiting, *creating]) - waited + taken
    end = union([*waiting, *creating, *ending]) - waited - (create - taken)
    slot = min(sum(session.slot for session in created), waited)
    return Waits(*map(_round, (waited - slot, slot, create, end)))


def _live(sessions: list[TimedSession]) -> list[tuple[float, int]]:
    changes: Counter[float] = Counter()
    for session in sessions:
        if session.created is not None:
            changes[session.created] += 1
            if session.ended is not None:
                changes[session.ended] -= 1
    steps, number = [(0.0, 0)], 0
    for moment, change in sorted(changes.items()):
        if change:
            number += change
            steps.append((moment, number))
    return steps


def _counts(state: State, sessions: list[TimedSession]) -> dict[str, int]:
    return {
        "sessions": sum(session.created is not None for session in sessions),
        "open": sum(session.state == "open" for session in sessions),
        "kept": sum(session.state == "kept" for session in sessions),
        "unresolved": sum(session.state == "lost" for session in sessions),
        "ended_by_tests": sum(session.ended_by == "test" for session in sessions),
        "swept": sum(session.ended_by == "sweep" for session in sessions),
        "recovered": sum(session.ended_by in AFTER_DEATH for session in sessions),
        "ended_by_themselves": sum(session.already for session in sessions),
        "ahead": sum(session.ahead for session in sessions),
        "unused": sum(session.unused for session in sessions),
        "retried": sum(session.retried > 0 for session in sessions),
        "refused": sum(record.state == "refused" for record in state.records.values()),
        "rate_limited": len(state.limited),
        "unreadable": state.unreadable,
    }


def _natural(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """Sorts ``gw2`` before ``gw10``, and ``main`` before both."""
    return name != "main", [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _round(seconds: float) -> float:
    return round(seconds, 3)
