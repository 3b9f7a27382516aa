"""What a run's journal comes to: a record of each session, as the events make it.

The events, each with its ``event``, and the ``nonce`` of the creation that it is about:

``intent``   written before the request: ``owner``, ``test``, ``time``, ``base_url``, ``fingerprint``, ``run_id``, the
             ``folder_inode``, which tells a copy of the folder from the original, ``ahead`` where no test has asked
             for it yet, and ``retried``, how often it had failed before
``refused``  there is no session: the API did not create it, or does not know it long after
``lost``     the answer never came: a session may exist. ``time``, ``error``
``created``  its ``id``, and a ``signature`` that takes the API key to make: nothing is ended by an edited file
``taken``    a test has asked for what was created ahead: ``test``
``failed``   an attempt to end it did not succeed: ``error``
``ended``    it is over: ``ended_by``, ``already``, ``note``
``waited``   a creation had to wait for the plan's limits: seconds for its ``rate``, and for a free ``slot``
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..tags import is_session_id

MOST = 1_000_000  # what no number of tries, and no status, comes to


@dataclass
class Record:
    """What the journal knows of one creation."""

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

    def apply(self, event: str, fields: dict[str, Any]) -> None:
        """Take one event in; to take it in again changes nothing.

        :raises ValueError: it is not an event; so do TypeError, KeyError, AttributeError and OverflowError say.
        """
        if event == "intent":
            self.owner, self.test = str(fields["owner"]), str(fields["test"])
            self.base_url, self.fingerprint = str(fields["base_url"]), str(fields["fingerprint"])
            self.run_id, self.folder_inode = str(fields["run_id"]), int(fields["folder_inode"])
            self.time = float(fields["time"])
            self.ahead, self.retried = bool(fields.get("ahead", False)), _count(fields.get("retried", 0))
        elif event == "taken":
            self.test, self.ahead = str(fields["test"]), False
        elif event == "created":
            if not (is_session_id(fields["id"]) and fields["signature"].isascii()):
                raise ValueError(event)
            self.id, self.signature = fields["id"], fields["signature"]
            if self.state != "ended":  # another process was faster
                self.state, self.error = "open", None
        elif event == "refused":
            self.state = event
        elif event == "lost":
            self.error, self.time = _error_fields(fields["error"]), float(fields["time"])
            self.state = event
        elif event == "failed":
            self.error = _error_fields(fields["error"])
        elif event == "ended":
            self.ended_by, self.already = str(fields["ended_by"]), bool(fields["already"])
            self.note = str(fields.get("note", ""))
            self.state, self.error = "ended", None
        else:
            raise ValueError(event)

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
    """

    rate: float
    slot: float


@dataclass
class State:
    """All records of a run, in the order of their intents."""

    records: dict[str, Record] = field(default_factory=dict)
    unreadable: int = 0  # lines that are no events and not merely a kill's torn last line
    waits: dict[str, Wait] = field(default_factory=dict)  # by nonce

    @property
    def settled(self) -> bool:
        """Whether nothing can be running, by this record."""
        return not (self.unreadable or any(record.open or record.unresolved for record in self.records.values()))

    def apply(self, line: dict[str, Any]) -> None:
        """Take one event in."""
        nonce = str(line["nonce"])
        if not nonce.isascii():
            raise ValueError(nonce)
        if line["event"] == "waited":
            wait = Wait(float(line["rate"]), float(line["slot"]))
            if not all(0 <= seconds <= MOST for seconds in wait):
                raise ValueError(wait)
            self.waits[nonce] = wait
            return
        record = self.records.get(nonce) or Record(nonce)
        record.apply(line["event"], line)
        self.records[nonce] = record


def _count(value: Any) -> int:
    if not 0 <= (number := int(value)) <= MOST:
        raise ValueError(value)
    return number


def _error_fields(error: dict[str, Any]) -> dict[str, Any]:
    """An error's fields as the journal keeps them, each of its proper type."""
    status, tries = error["status"], int(error["tries"])
    if not (0 <= tries <= MOST and (status is None or 0 <= int(status) <= MOST)):
        raise ValueError(error)
    texts = {name: str(error[name]) for name in ("code", "message", "remedy")}
    return {"status": None if status is None else int(status), "tries": tries, **texts}
