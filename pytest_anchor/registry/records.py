"""What a run's journal comes to: a record of each session, as the events make it.

The events, each with its ``event``, the ``nonce`` of the creation that it is about, and the ``time`` in seconds since
the epoch, by the broker's clock; earlier versions gave that to the first two below only:

``intent``   written before the request: ``owner``, ``test``, ``base_url``, ``fingerprint``, ``run_id``, the
             ``folder_inode``, which tells a copy of the folder from the original, ``ahead`` where no test has asked
             for it yet, and ``retried``, how often it had failed before
``lost``     the answer never came: a session may exist. ``error``
``refused``  there is no session: the API did not create it, or does not know it long after
``limited``  the API's answer was a 429, so it was refused; ``quota`` and ``window`` as below
``created``  its ``id``, and a ``signature`` that takes the API key to make: nothing is ended by an edited file
``taken``    a test has asked for what was created ahead: ``test``, and the seconds that it ``waited`` for it
``tested``   a test that had it is over: ``test``, when that ``began`` and ``ended``, its ``outcome``, and as which
             ``rerun`` it ran, 0 for the first time
``evidence`` something to look at was kept of it: the ``kind``, its ``path``, and the ``test`` that it shows
``failed``   an attempt to end it did not succeed: ``error``, and when the attempt ``began``
``kept``     its test has failed, and it stays open for a person to look at: ``until`` when
``ended``    it is over: ``ended_by``, ``already``, ``note``, and when the attempt ``began`` that confirmed it
``waited``   a creation had to wait for the plan's limits until ``time``: seconds for its ``rate``, and for a free
             ``slot``; how many of these for runs ``elsewhere``, on other machines; and the ``quota`` of creations that
             the API allows in a ``window`` of seconds, if that is known; the first creation for which it is known
             writes this even if it did not wait
``run``      about the run itself, with an empty ``nonce``: the ``cap`` of sessions at once, ``prefetch``, and
             ``end_in_background``
"""

from __future__ import annotations

from dataclasses import dataclass, field
from sys import intern
from typing import TYPE_CHECKING, Any, NamedTuple

from ..tags import is_session_id

if TYPE_CHECKING:
    from collections.abc import Collection

MOST = 1_000_000  # what no number of tries, and no status, comes to
LATEST = 1e11  # seconds since the epoch, which is in three thousand years
ABOUT_TESTS = ("tested", "evidence")  # events
KINDS = ("screenshot", "recording")
OUTCOMES = ("passed", "failed", "skipped", "xfailed", "xpassed", "error")


class Tested(NamedTuple):
    """A test that had a session.

    :param began: in seconds since the epoch, with its setup; ``ended`` is after its teardown.
    :param outcome: one of :data:`OUTCOMES`.
    :param rerun: how often the test had run before.
    """

    test: str
    began: float
    ended: float
    outcome: str
    rerun: int = 0


class Kept(NamedTuple):
    """Something to look at that was kept of a session.

    :param kind: one of :data:`KINDS`.
    """

    kind: str
    path: str
    test: str


@dataclass
class Record:
    """What the journal knows of one creation; moments are in seconds since the epoch, ``None`` if not known.

    :param time: when it was asked for, or its answer lost.
    :param begun_at: when it was asked for.
    :param created_at: when its answer came, or the session was found.
    :param end_begun_at: when the first attempt to end it began.
    :param tests: those that had it, in the order of their ends.
    """

    nonce: str
    owner: str = "?"
    test: str = "?"
    time: float = 0.0
    base_url: str = ""
    fingerprint: str = ""
    run_id: str = ""
    folder_inode: int = 0
    ahead: bool = False  # created before a test asked for it, and none has
    retried: int = 0  # how often a creation for the same request had failed before
    id: str | None = None
    signature: str = ""
    state: str = "pending"  # pending, lost, refused, open, ended
    ended_by: str = ""
    already: bool = False
    note: str = ""
    error: dict[str, Any] | None = None  # of the last failure; its ``tries`` are the sum over all failures
    begun_at: float | None = None
    created_at: float | None = None
    end_begun_at: float | None = None
    kept_until: float | None = None
    ended_at: float | None = None
    taken: bool = False  # by a test, after it had been created ahead
    waited: float = 0.0  # seconds for which that test waited for it
    tests: dict[str, Tested] = field(default_factory=dict)
    evidence: dict[str, Kept] = field(default_factory=dict)  # by path

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Record:
        """What ``vars`` gave of a record, from another process."""
        tests = {key: Tested(*tested) for key, tested in values.get("tests", {}).items()}
        evidence = {path: Kept(*kept) for path, kept in values.get("evidence", {}).items()}
        return cls(**{**values, "tests": tests, "evidence": evidence})

    def apply(self, event: str, fields: dict[str, Any]) -> None:
        """Take one event in; to take it in again changes nothing.

        :raises ValueError: it is not an event; so do TypeError, KeyError, AttributeError and OverflowError say.
        """
        if event == "intent":
            self.owner, self.test = _shared(fields["owner"]), _shared(fields["test"])
            self.base_url, self.fingerprint = _shared(fields["base_url"]), _shared(fields["fingerprint"])
            self.run_id, self.folder_inode = _shared(fields["run_id"]), int(fields["folder_inode"])
            self.time = float(fields["time"])
            self.begun_at = self.time if 0 <= self.time <= LATEST else None
            self.ahead, self.retried = bool(fields.get("ahead", False)), _count(fields.get("retried", 0))
        elif event == "taken":
            self.test, self.ahead, self.taken = _shared(fields["test"]), False, True
            self.waited = _seconds(fields.get("waited", 0))
        elif event == "created":
            if not (is_session_id(fields["id"]) and fields["signature"].isascii()):
                raise ValueError(event)
            self.created_at = self.created_at or _time_of(fields)
            self.id, self.signature = fields["id"], fields["signature"]
            if self.state != "ended":  # another process was faster
                self.state, self.error = "open", None
        elif event == "refused":
            self.state = event
        elif event == "lost":
            self.error, self.time = _error_fields(fields["error"]), float(fields["time"])
            self.state = event
        elif event in ABOUT_TESTS:
            self._apply_test(event, fields)
        elif event in ("kept", "failed", "ended"):
            self._apply_end(event, fields)
        else:
            raise ValueError(event)

    def _apply_test(self, event: str, fields: dict[str, Any]) -> None:
        if event == "tested":
            tested = _tested(fields)
            self.tests[f"{tested.began} {tested.test}"] = tested
            return
        if fields["kind"] not in KINDS:
            raise ValueError(fields["kind"])
        kept = Kept(fields["kind"], str(fields["path"]), str(fields["test"]))
        self.evidence[kept.path] = kept

    def _apply_end(self, event: str, fields: dict[str, Any]) -> None:
        if event == "kept":
            self.kept_until = _moment(fields["until"])
            return
        if self.end_begun_at is None and "began" in fields:
            self.end_begun_at = _moment(fields["began"])
        if event == "failed":
            self.error = _error_fields(fields["error"])
            return
        self.ended_by, self.already = _shared(fields["ended_by"]), bool(fields["already"])
        self.note = str(fields.get("note", ""))
        self.ended_at = self.ended_at or _time_of(fields)
        self.state, self.error = "ended", None

    def browser_seconds(self, now: float) -> float:
        """For how long its browser has run until *now*, in seconds since the epoch; 0 if it is not known."""
        until = now if self.open else self.ended_at
        return 0.0 if self.created_at is None or until is None else max(until - self.created_at, 0.0)

    @property
    def open(self) -> bool:
        """Whether a session is known that has not been confirmed to be over."""
        return self.state == "open"

    @property
    def unresolved(self) -> bool:
        """Whether a session may exist whose id is not known."""
        return self.state in ("pending", "lost")


class Wait(NamedTuple):
    """For how long a creation waited, in seconds.

    :param rate: for the plan's rate limit.
    :param slot: for a session to end.
    :param until: when the wait was over, in seconds since the epoch, ``None`` if not known.
    :param elsewhere: how much of it for runs of other machines.
    """

    rate: float
    slot: float
    until: float | None = None
    elsewhere: float = 0.0


class RunFacts(NamedTuple):
    """How a run is set up.

    :param cap: most sessions at once, 0 where no number is known.
    :param prefetch: sessions that each process creates ahead.
    :param end_in_background: whether no test waits for a teardown's ends.
    """

    cap: int = 0
    prefetch: int = 0
    end_in_background: bool = False


@dataclass
class State:
    """All records of a run, in the order of their intents."""

    records: dict[str, Record] = field(default_factory=dict)
    unreadable: int = 0  # lines that are no events and not merely a kill's torn last line
    waits: dict[str, Wait] = field(default_factory=dict)  # by nonce
    limited: dict[str, float] = field(default_factory=dict)  # when a 429 was answered, by nonce
    quota: int = 0  # creations that the API allows in a window, 0 where it has not told
    window: float = 0.0  # seconds
    facts: RunFacts = field(default_factory=RunFacts)

    @property
    def settled(self) -> bool:
        """Whether nothing can be running, by this record."""
        return self.settled_but(())

    def settled_but(self, kept: Collection[str]) -> bool:
        """The same, but for creations that are *kept* open."""
        left = (record for record in self.records.values() if record.open or record.unresolved)
        return not self.unreadable and all(record.nonce in kept for record in left)

    def browser_seconds(self, now: float) -> float:
        """For how long browsers have run, all together.

        :param now: in seconds since the epoch, for those that run still.
        """
        return sum(record.browser_seconds(now) for record in list(self.records.values()))

    def apply(self, line: dict[str, Any]) -> None:
        """Take one event in."""
        nonce = str(line["nonce"])
        if not nonce.isascii():
            raise ValueError(nonce)
        if line["event"] == "waited":
            elsewhere = _seconds(line.get("elsewhere", 0.0))
            self.waits[nonce] = Wait(_seconds(line["rate"]), _seconds(line["slot"]), _time_of(line), elsewhere)
            self._note_policy(line)
            return
        if line["event"] == "limited":
            self.limited[nonce] = _moment(line["time"])
            self._note_policy(line)
            return
        if line["event"] == "run":
            self.facts = RunFacts(_count(line["cap"]), _count(line["prefetch"]), bool(line["end_in_background"]))
            return
        record = self.records.get(nonce) or Record(nonce)
        record.apply(line["event"], line)
        if line["event"] not in ABOUT_TESTS:  # they are no news of a session that is not on record
            self.records[nonce] = record

    def _note_policy(self, line: dict[str, Any]) -> None:
        if line.get("quota"):
            self.quota, self.window = _count(line["quota"]), _seconds(line["window"])


def _shared(text: Any) -> str:
    """The text as one string for all records that have it: there may be tens of thousands of them."""
    return intern(str(text))


def _count(value: Any) -> int:
    if not 0 <= (number := int(value)) <= MOST:
        raise ValueError(value)
    return number


def _seconds(value: Any) -> float:
    if not 0 <= (seconds := float(value)) <= MOST:
        raise ValueError(value)
    return seconds


def _moment(value: Any) -> float:
    if not 0 <= (moment := float(value)) <= LATEST:
        raise ValueError(value)
    return moment


def _time_of(fields: dict[str, Any]) -> float | None:
    return _moment(fields["time"]) if "time" in fields else None


def _tested(fields: dict[str, Any]) -> Tested:
    began, ended = _moment(fields["began"]), _moment(fields["ended"])
    if ended < began or fields["outcome"] not in OUTCOMES:
        raise ValueError(fields)
    return Tested(_shared(fields["test"]), began, ended, _shared(fields["outcome"]), _count(fields.get("rerun", 0)))


def _error_fields(error: dict[str, Any]) -> dict[str, Any]:
    """An error's fields as the journal keeps them, each of its proper type."""
    status, tries = error["status"], int(error["tries"])
    if not (0 <= tries <= MOST and (status is None or 0 <= int(status) <= MOST)):
        raise ValueError(error)
    texts = {name: str(error[name]) for name in ("code", "message", "remedy")}
    return {"status": None if status is None else int(status), "tries": tries, **texts}
