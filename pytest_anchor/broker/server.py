"""Serves the processes of a run: a thread for each connection, a line of JSON for each message."""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ..configuration import Wanted
from ..errors import AnchorError, fields_of, redact
from ..settings import socket_identity
from .broker import Broker, LeavingError
from .evidence import as_values
from .owner import CancelledError, Request
from .processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..settings import Settings
    from .owner import Session

NOTE_INTERVAL = 30.0  # seconds between notes on what a process's creations wait for
WITHDRAW_TIMEOUT = 1.0  # seconds in which what still waits gives up its place in the queue, or gets its answer
REACHABLE_INTERVAL = 0.5  # seconds between looks at the socket's path, until a first process has connected
MAX_MESSAGE = 16 << 20  # bytes; a session's configuration has a few thousand


class Server:
    """Accepts connections until the run is over.

    :param identity: the :func:`.socket_identity` of the listener's file.
    """

    def __init__(self, settings: Settings, listener: socket.socket, generation: int, identity: list[int]) -> None:
        self._listener = listener
        self._identity = identity
        self._answering = 0  # creations and goodbyes
        self._answered = threading.Condition()
        self._folder = f"{settings.socket_folder}/{generation}"
        self._woken, self._waker = socket.socketpair()
        self._broker = Broker(settings, self._waker.close)

    def serve(self, starter: Process) -> None:
        """Block until the run is over, and nothing of it is open that could still be ended.

        :param starter: the process that has started this one.
        """
        self._broker.start(starter)
        interval: float | None = REACHABLE_INTERVAL
        while True:
            readable, _, _ = select.select([self._listener, self._woken], [], [], interval)
            if not readable and not self._is_reachable:
                break
            if self._listener in readable:
                interval = None
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            if self._woken in readable:
                break
        # A process that has connected too late finds the connection closed, and starts another broker.
        self._listener.close()
        self._woken.close()
        with self._answered:
            self._answered.wait_for(lambda: not self._answering, WITHDRAW_TIMEOUT)
        self._broker.close()
        if self._is_reachable:  # else another broker has its folder in that place by now, or nothing is there
            with suppress(OSError):
                _remove(*os.path.split(self._folder))

    def hurry(self) -> None:
        """End at once what is kept open for a person to look at."""
        self._broker.hurry()

    @property
    def _is_reachable(self) -> bool:
        """Whether a process can find this broker.

        One that was leaving may have removed the folder just as this one got its place in it. Then the process that
        has started this one has started another since, which waits for the run's lock.
        """
        try:
            return socket_identity(os.stat(f"{self._folder}/socket")) == self._identity
        except OSError:
            return False

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, LeavingError), Connection(connection) as peer:
            hello = peer.receive() or {}
            pid = peer.pid or hello.get("pid")
            if "owner" not in hello or not isinstance(pid, int):
                return
            process = Process(str(hello["owner"]), pid)
            if not self._broker.add(process):
                peer.send({"error": fields_of(AnchorError("this process has left the run, which creates no more"))})
                return
            peer.send({"ready": True})
            while (message := peer.receive()) is not None:
                is_creation = message.get("verb") == "create"
                try:
                    with self._held(is_creation or message.get("verb") == "goodbye"):
                        peer.send(self._answer(process, peer, message))
                finally:
                    if is_creation:
                        self._confirm(process, peer)

    @contextmanager
    def _held(self, is_held: bool) -> Iterator[None]:  # noqa: FBT001
        """Keep the broker from leaving, for a moment, while it answers what its last process waits for."""
        with self._answered:
            self._answering += is_held
        try:
            yield
        finally:
            with self._answered:
                self._answering -= is_held
                self._answered.notify_all()

    def _answer(self, process: Process, peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
        try:
            return VERBS[message["verb"]](self._broker, process, peer, message)
        except Exception as error:  # noqa: BLE001 - whatever it is, the process that asked gets it
            fields = fields_of(error)
            if "message" in fields:
                fields["message"] = redact(fields["message"], self._broker.settings.api_key or "\0")
            return {"error": fields}

    def _confirm(self, process: Process, peer: Connection) -> None:
        """Wait until the process has taken in what was created for it; what it has not, is ended."""
        session, peer.created = peer.created, None
        if session is None:
            return
        answer = None
        with suppress(OSError):
            answer = peer.receive()
        if answer is None:
            self._broker.owner(process).end_later([session])


def _remove(folder: str, generation: str) -> None:
    """Remove the folder for sockets, unless a broker was started since: it needs those of the brokers before it."""
    names = os.listdir(folder)
    if any(not name.isdecimal() or int(name) > int(generation) for name in names if name != "log"):
        return
    # At once: a process that found some generations gone and a later one not yet would start one of the former anew.
    gone = f"{folder}.{os.getpid()}"
    os.rename(folder, gone)
    if len(os.listdir(gone)) > len(names):  # another was started at this very moment
        os.rename(gone, folder)
        return
    for name in names:
        if name == "log":
            os.unlink(f"{gone}/{name}")
        else:
            os.unlink(f"{gone}/{name}/socket")
            os.rmdir(f"{gone}/{name}")
    os.rmdir(gone)


class Connection:
    """One connection of a process of the run."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._file = connection.makefile("rb")
        self.created: Session | None = None  # what the process has not confirmed yet
        self.next_note = 0.0  # when one is due on what it waits for, in ``time.monotonic()`` seconds
        self.pid = _peer_pid(connection)

    def __enter__(self) -> Connection:  # noqa: PYI034 - not made to be inherited from
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def receive(self) -> dict[str, Any] | None:
        """The next message; ``None`` where the process is gone, has closed the connection, or sends no message."""
        line = self._file.readline(MAX_MESSAGE)
        if not line.endswith(b"\n"):
            return None
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return message if isinstance(message, dict) else None

    def send(self, message: dict[str, Any]) -> None:
        """Answer, or say something meanwhile.

        :raises OSError: the process is gone.
        """
        self._socket.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    @property
    def is_closed(self) -> bool:
        """Whether the process has closed the connection while it waits for an answer."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


def _peer_pid(connection: socket.socket) -> int:
    """The pid of the process at the other end, 0 where the kernel does not report it."""
    if not hasattr(socket, "SO_PEERCRED"):
        return 0
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    if uid != os.geteuid():
        raise OSError("a connection of another user")
    return int(pid)


class _ClientRequest(Request):
    """A creation that a process waits for."""

    def __init__(self, broker: Broker, process: Process, peer: Connection, message: dict[str, Any]) -> None:
        super().__init__(message["test"], is_self_blocked=message["is_self_blocked"])
        self._broker = broker
        self._process = process
        self._peer = peer

    def report_wait(self, text: str) -> None:
        if (now := time.monotonic()) >= self._peer.next_note:
            self._peer.next_note = now + NOTE_INTERVAL
            with suppress(OSError):  # it is cancelled, then
                self._peer.send({"note": text})
        self._broker.waits.report(self, f"{self.test} [{self._process.name}]{text.removeprefix(self.test)}")

    @property
    def is_cancelled(self) -> bool:
        return self._peer.is_closed or self._process not in self._broker.processes.living


def _create(broker: Broker, process: Process, peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    request = _ClientRequest(broker, process, peer, message)
    owner = broker.owner(process)
    try:
        session = owner.create(message["config"], request)
    finally:
        broker.waits.remove(request)
    if request.is_cancelled:
        owner.end_later([session])
        raise CancelledError("no process takes what was created")
    peer.created = session
    return {
        "ack": True,
        "nonce": session.record.nonce,
        "id": session.record.id,
        "cdp_url": session.cdp_url,
        "live_view_url": session.live_view_url,
        "created": session.created,
    }


def _end(broker: Broker, _process: Process, _peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    sessions = broker.sessions(message["nonces"])
    failures = broker.end(message["nonces"], ended_by=message["ended_by"], timeout=message["timeout"])
    return {
        "failures": {nonce: fields_of(error) for nonce, error in failures.items()},
        "already": [session.record.nonce for session in sessions if session.record.already],
        "kept": [session.record.nonce for session in sessions if session.kept_until],
    }


def _end_later(broker: Broker, _process: Process, _peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    broker.end_later(message["nonces"])
    return {}


def _tested(broker: Broker, _process: Process, _peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    fields = {name: message[name] for name in ("test", "outcome", "rerun")}
    broker.record_test(message["nonces"], seconds=message["seconds"], **fields)
    return {}


def _keep(broker: Broker, _process: Process, _peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    broker.keep(message["nonces"])
    return {}


def _screenshots(broker: Broker, _process: Process, _peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    pages = {nonce: [base64.b64decode(one) for one in images] for nonce, images in message["pages"].items()}
    screenshots = broker.screenshots(message["nonces"], message["test"], message["timeout"], pages)
    return {"screenshots": as_values(screenshots, with_content=message["with_content"])}


def _plan(broker: Broker, process: Process, _peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    if (owner := broker.known_owner(process)) is not None:  # nothing is created ahead of a test's own first request
        current, upcoming = message["current"], message["upcoming"]
        owner.plan(Wanted(*current) if current else None, [Wanted(*wanted) for wanted in upcoming])
    return {}


def _finish(broker: Broker, process: Process, _peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    return {"records": broker.finish_owner(process, message["timeout"])}


def _take_records(broker: Broker, _process: Process, _peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    broker.take_records(message["records"])
    return {}


def _goodbye(broker: Broker, process: Process, _peer: Connection, _message: dict[str, Any]) -> dict[str, Any]:
    broker.remove(process)
    return {}


def _recover(broker: Broker, _process: Process, _peer: Connection, _message: dict[str, Any]) -> dict[str, Any]:
    broker.recover()
    return {}


def _sweep(broker: Broker, _process: Process, peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    def report_progress(done: int, total: int) -> None:
        with suppress(OSError):
            peer.send({"note": [done, total]})

    return broker.sweep(
        has_remote_workers=message["has_remote_workers"],
        interrupted=message.get("interrupted", False),
        verbose=message["verbose"],
        progress=report_progress,
        should_continue=lambda: not peer.is_closed,
    )


def _report(broker: Broker, _process: Process, _peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    return broker.report(verbose=message["verbose"], interrupted=True)


def _watch_waits(broker: Broker, _process: Process, peer: Connection, _message: dict[str, Any]) -> dict[str, Any]:
    broker.waits.follow(lambda text: peer.send({"note": text}))
    return {}


def _forward(broker: Broker, _process: Process, _peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    return {"problem": broker.forward(message["nonce"], message["timeout"])}


def _forward_contexts(broker: Broker, _process: Process, _peer: Connection, message: dict[str, Any]) -> dict[str, Any]:
    broker.forwarding.note_contexts(message["nonce"], message["credentials"], message["timeout"])
    return {}


VERBS: dict[str, Callable[[Broker, Process, Connection, dict[str, Any]], dict[str, Any]]] = {
    "create": _create,
    "end": _end,
    "end later": _end_later,
    "tested": _tested,
    "keep": _keep,
    "screenshots": _screenshots,
    "plan": _plan,
    "finish": _finish,
    "take records": _take_records,
    "goodbye": _goodbye,
    "recover": _recover,
    "sweep": _sweep,
    "report": _report,
    "watch waits": _watch_waits,
    "forward": _forward,
    "forward contexts": _forward_contexts,
}
