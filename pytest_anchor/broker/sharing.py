"""What a run has to do with those of other machines: the limits that they share, and the sessions of what vanished.

The server by which they share does not know who lives: a run that cannot reach it may be well. So three things must
come together before a session of another run is ended: that run's lease has run out while others could renew theirs; it
has had time to show the API that it lives; and no session of its own carries the tag by which it does.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from ..api import Ended
from ..budget import leases
from ..budget.file_store import FileStore
from ..budget.redis_server import RedisServer
from ..budget.shared_store import SharedStore, account_key, boot_time
from ..cleanup.ending import EndsSessions, end_in_parallel
from ..errors import AnchorAPIError, AnchorError, printable
from ..reporting.summary import Line
from ..tags import NO_SIGN, Sign, new_tag, nonce_of, run_tag, sign_of, with_sign

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..api import AnchorAPI, Listed
    from ..budget.state import Lease
    from ..registry.journal import Run
    from ..settings import Settings

END_TIMEOUT = 30.0  # seconds for the ends of a vanished run's sessions, each time
LIST_TIMEOUT = 15.0  # seconds for the API's list
LOOK_AGAIN = 10.0  # seconds between looks for what a vanished run may have created at its last
REPORTED_AFTER = 1.0  # seconds without the server that are worth a line


class Sharing:
    """A run's part in what several machines share.

    :param api: one of its own, so that an answer of 429 to something else holds up none of this.
    """

    def __init__(self, settings: Settings, run: Run, api: AnchorAPI) -> None:
        # A worker on another machine has a broker of its own, and the name of its controller's run.
        name = f"{run.folder.name}.{settings.owner}" if settings.own_registry else run.folder.name
        member = leases.Member(name, settings.run_id, socket.gethostname(), settings.shard, settings.shared_lease)
        self.store = SharedStore(
            RedisServer(settings.shared_limits, account_key(api.account)),
            FileStore(run.folder.parent, api.account, name, ""),
            member,
            api.sign,
            [record.nonce for record in run.read().records.values() if record.open or record.unresolved],
        )
        self._api = api
        self._run = name
        self._invocation = run.folder.name
        self._run_id = settings.run_id
        self._lease = settings.shared_lease
        self._beat = 0  # see Sign, as are the two that follow
        self._next_beat = 0.0  # in ``time.monotonic()`` seconds
        self._refused = 0  # the joins for which the API takes no tags
        self._signs: dict[str, tuple[Sign, float]] = {}  # by vanished run, with when it was first seen
        self._next_look: dict[str, float] = {}  # by vanished run, in ``time.monotonic()`` seconds
        self._recovered: dict[str, tuple[Lease, int]] = {}  # by vanished run, with how many of its sessions were ended
        self._closed = threading.Event()
        self._busy = threading.Lock()  # held while sessions of vanished runs are ended
        threading.Thread(target=self._keep_up, name="sharing", daemon=True).start()

    @property
    def tags(self) -> list[str]:
        """What sessions are tagged with in addition."""
        if self.store.is_joined or not self.store.joins:
            return []
        self._beat += 1
        return [self._sign.tag]

    @property
    def _sign(self) -> Sign:
        return Sign(self.store.joins, self._beat)

    def settle(self, timeout: float) -> None:
        """Wait until what was found of a vanished run is ended.

        :param timeout: seconds.
        """
        if self._busy.acquire(timeout=timeout):
            self._busy.release()

    def close(self) -> None:
        """Give up all that the run shares."""
        self._closed.set()
        self.store.close()

    def lines(self) -> Iterator[Line]:
        """What the summary says of it."""
        for lease, count in list(self._recovered.values()):
            sessions = "1 session" if count == 1 else f"{count} sessions"
            yield Line(f"recovered {sessions} of {describe_run(lease)}, whose machine vanished", {"green": True})
        outage = self.store.outage
        if outage.why and (outage.total > REPORTED_AFTER or not self.store.joins):
            often = "" if outage.count == 1 else f", in {outage.count} spells"
            yield Line(
                f"the server of --anchor-shared-limits could not be used for {outage.total:.0f} s{often} "
                f"({printable(outage.why, 200)}): this run kept to its own limits meanwhile",
                {"yellow": True},
            )
        if self.store.taken_by:
            yield Line(
                "this run did not reach the server of --anchor-shared-limits for so long that another took it for "
                "vanished, and may have ended its sessions",
                {"yellow": True},
            )

    def _keep_up(self) -> None:
        while not self._closed.wait(self._lease * leases.RENEW_SHARE):
            if self.store.silence > self._lease * leases.GAP_SHARE:
                with suppress(AnchorError):
                    self._show_life()
            elif self.store.is_joined and self.store.known.vanished and self._busy.acquire(blocking=False):
                # It takes as long as the API does, and this run may be cut off meanwhile.
                threading.Thread(target=self._take_over, name="take-over", daemon=True).start()

    # Where this run is cut off from the others.

    def _show_life(self) -> None:
        """Tag the run's sessions, so that no other run takes them for a vanished machine's."""
        sign = self._sign
        if self._refused == sign.joins or time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + self._lease * leases.GAP_SHARE
        self._beat += 1
        deadline = time.monotonic() + self._lease
        sessions = self._listed(self._run_id, self._invocation, deadline)
        unsigned = [session for session in sessions if sign_of(session.tags).joins < sign.joins]
        outcomes = [self._tag(session, deadline) for session in unsigned or sessions[-1:]]
        if "refused" in outcomes:
            self._refused = sign.joins

    def _tag(self, session: Listed, deadline: float) -> str:
        try:
            self._api.set_tags(session.id, with_sign(session.tags, self._sign), deadline=deadline)
        except AnchorAPIError as error:
            return "failed" if error.is_transient or error.status == 401 else "refused"  # 401: it is over
        return "tagged"

    # Where another one is.

    def _take_over(self) -> None:
        try:
            taken = self.store.update(partial(leases.take_over, run=self._run))
            for run, lease in taken.items():
                if time.monotonic() >= self._next_look.get(run, 0.0):
                    self._next_look[run] = time.monotonic() + LOOK_AGAIN
                    with suppress(AnchorError):
                        self._end_sessions(run, lease)
        finally:
            self._busy.release()

    def _end_sessions(self, run: str, lease: Lease) -> None:
        # In this order: where the run turns out, after the list was read, not to have come back so far, all that is
        # listed was created before it can do so. What it creates once it is back is not in this list.
        listed = self._listed(lease.run_id, run, time.monotonic() + LIST_TIMEOUT)
        if self._shows_life(run, lease, max((sign_of(session.tags) for session in listed), default=NO_SIGN)):
            return
        asked = boot_time()
        if not self.store.update(partial(leases.confirm, run=self._run, taken=run)):
            return
        nonces = {session.id: nonce_of(session.tags, run) or "" for session in listed}
        ends = _Ends(self._api, nonces, asked + self._lease)
        outcomes = end_in_parallel(nonces, ends, self._api, deadline=time.monotonic() + END_TIMEOUT)
        ended = sum(isinstance(outcome, Ended) and not outcome.already for outcome in outcomes.values())
        if ended:
            _, before = self._recovered.get(run, (lease, 0))
            self._recovered[run] = (lease, before + ended)
        if all(isinstance(outcomes.get(session.id), Ended) for session in listed):
            self.store.update(partial(leases.settle, run=self._run, taken=run))

    def _shows_life(self, run: str, lease: Lease, sign: Sign) -> bool:
        """Whether a run that was taken for vanished lives: its sign is another than a lease ago."""
        if sign.joins < lease.joins:
            return False
        before, since = self._signs.get(run, (NO_SIGN, 0.0))
        if sign != before:
            since = boot_time()
            self._signs[run] = sign, since
        return boot_time() - since <= lease.lasts

    def _listed(self, run_id: str, run: str, deadline: float) -> list[Listed]:
        """The sessions of a run that may be alive."""
        listed = self._api.sessions_with_tag(run_tag(run_id), deadline=deadline)
        return [session for session in listed if session.alive and nonce_of(session.tags, run) is not None]


class _Ends(EndsSessions):
    """The ends of a vanished run's sessions.

    :param nonces: by the sessions' ids.
    :param until: by :func:`boot_time`; who has stood still since then knows no more whether that run has come back.
    """

    def __init__(self, api: AnchorAPI, nonces: Mapping[str, str], until: float) -> None:
        self._nonces = nonces
        self._api = api
        self._until = until

    def end(self, session: str, deadline: float) -> Ended | AnchorAPIError:
        what = f"end session {session}"
        try:
            if boot_time() > self._until:
                return AnchorAPIError(what, message="too long after its run was found to be gone; nothing was sent")
            return self._api.end(session, new_tag(self._nonces[session]), deadline=deadline)
        except AnchorAPIError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the thread's caller waits for an outcome
            return AnchorAPIError(what, message=f"an unexpected error, please report it: {error!r}")


def describe_run(lease: Lease) -> str:
    """A run of another machine, in words."""
    machine = printable(lease.machine, 60)
    return f"shard {printable(lease.shard, 20)} ({machine})" if lease.shard else f"the run on {machine}"
