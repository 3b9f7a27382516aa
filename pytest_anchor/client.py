"""The test process's end of the socket to the broker.

Tests patch, freeze and break whatever they like in their own process. So nothing in here is looked up when it is
needed: the kernel's calls are bound when the plugin is imported, and are held where no tool that replaces functions in
modules finds them. There is no clock and no sleep: every wait is a read from a socket that has a timeout.
"""

from __future__ import annotations

import os
import sys
import weakref
from _thread import get_ident
from binascii import crc32
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .delegation import THREAD, WithdrawnError
from .errors import AnchorError, AnchorRegistryError, Secret, rebuild, redact
from .forks import after_in_child
from .launcher import Launcher, System, check_folder, exists, getpid, start_failure
from .settings import check_key, key_from_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from .delegation import Delegation, Presence
    from .settings import Settings

START_TIMEOUT = 30.0  # seconds until the broker must answer its first message
ATTEMPTS = 3  # brokers that one request starts, at most
MAX_TEST = 1000  # characters of a test's id that are kept on record
GOODBYE_TIMEOUT = 10.0  # seconds
FOREVER = 1e6  # seconds
MOST_WATCHED = 100  # brokers that die while a run is watched
SLACK = 30.0  # seconds that an answer may take beyond the time that the broker gives itself

_RESET_MEANS_UNREAD = sys.platform == "linux"


class _ClosedError(Exception):
    """The broker has closed the connection; *sent* tells whether it may have read the request."""

    def __init__(self, *, sent: bool) -> None:
        self.sent = sent


class _Connection:
    """One connection, for one request at a time."""

    def __init__(self, path: str) -> None:
        self._socket = System.unix_socket()
        self._received = b""
        self.greeted = False  # whether the broker has answered the first message
        try:
            self._socket.settimeout(START_TIMEOUT)
            self._socket.connect(path)
            self._inode = _inode(self._socket.fileno())
        except BaseException:
            self._socket.close()
            raise

    @property
    def _is_open(self) -> bool:
        """Whether no test has closed the descriptor, whose number may be another file's by now."""
        try:
            return _inode(self._socket.fileno()) == self._inode
        except OSError:
            return False

    def send(self, message: str) -> None:
        if not self._is_open:
            raise _ClosedError(sent=False)
        try:
            self._socket.sendall(message.encode() + b"\n", System.no_signal)
        except OSError:
            raise _ClosedError(sent=False) from None

    def confirm(self) -> None:
        """Have the broker keep what it has created: it ends what is not confirmed."""
        if not self._is_open:
            raise _ClosedError(sent=False)
        with suppress(OSError):  # the broker is dead, and ends nothing; the session is on record
            self._socket.sendall(b'{"verb":"ack"}\n', System.no_signal)

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next message.

        :param timeout: seconds.
        """
        self._socket.settimeout(timeout)
        while b"\n" not in self._received:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise
            except ConnectionResetError:  # so Linux tells that there is more which the broker has not read
                raise _ClosedError(sent=not _RESET_MEANS_UNREAD) from None
            except OSError:
                data = b""
            if not data:
                raise _ClosedError(sent=True)
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        try:
            message = System.decode(line.decode())
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):  # it is no broker of ours
            raise _ClosedError(sent=True)
        return message

    def greet(self, timeout: float) -> None:
        """Wait until the broker serves.

        :param timeout: seconds.
        """
        if not self.greeted:
            if "error" in (answer := self.receive(timeout)):
                raise rebuild(answer["error"])
            self.greeted = True

    def shut_down(self) -> None:
        """Make both ends read that this is closed; unlike ``close``, that wakes the thread that reads here."""
        if self._is_open:
            with suppress(OSError):  # the broker is gone
                self._socket.shutdown(System.both_ways)

    def close(self) -> None:
        if self._is_open:
            self._socket.close()
        else:
            self._socket.detach()


class Client:
    """Asks the run's broker, and starts it where there is none. Safe to use from several threads, and after a fork.

    What is needed to start a broker is read when the client is made: the interpreter, its path and the environment
    may be anything by the time that a test asks for a session.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.used = False  # whether this process has had to do with the run's sessions
        self._key = Secret(settings.api_key) if settings.api_key else None
        self._is_over = False  # whether this process has left the run
        self._is_leaving = False
        self._launcher = Launcher(settings)
        self._generation = 0
        self.is_stuck = False  # whether the broker did not answer in time
        self._forget()
        if System.is_complete:
            os.register_at_fork(after_in_child=after_in_child(weakref.ref(self)))

    def _forget(self) -> None:
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._threads: set[weakref.ref[Presence]] = set()  # that have asked for something
        self._main_thread = get_ident()

    def forget_parents(self) -> None:
        """In a forked child: the parent's connections are the parent's."""
        for connection in self._open:
            connection.close()
        self._forget()

    @property
    def is_self_blocked(self) -> bool:
        """Whether no session of this process can be ended while the calling thread, or its task, waits."""
        delegation = THREAD.delegation
        if delegation and delegation.others_go_on:
            return False
        asking = (delegation or THREAD).presence.thread
        alive = {presence.thread for reference in list(self._threads) if (presence := reference())}
        return {asking, *alive} == {self._main_thread}

    @property
    def pid(self) -> int:
        """The process that this is, whatever has become of ``os.getpid``."""
        return getpid()

    @property
    def is_connected(self) -> bool:
        """Whether this process has a connection to the broker."""
        return bool(self._open)

    @property
    def key(self) -> Secret | None:
        """The API key, if there is one by now: a fixture, or a dotenv file, may have set it."""
        self._key = self._key or key_from_environment()
        return self._key

    def name_of(self, test: str) -> str:
        """The name under which a test is kept on record: its id, shortened if need be, and without the key.

        The id of a parametrised test may be of any length, and its parameter may be the key.
        """
        name = redact(test, self.key) if self.key else test
        if len(name) <= MAX_TEST:
            return name
        return f"{name[: MAX_TEST - 9]}…{crc32(name.encode('utf-8', 'surrogatepass')):08x}"

    @property
    def is_active(self) -> bool:
        """Whether any process of the run on this machine has started a broker."""
        if not System.is_complete:
            return False
        return exists(self.settings.socket_folder) or exists(str(self.settings.folder))

    def start(self) -> None:
        """Start the broker, and do not wait until it is ready."""
        if System.is_complete and self.key:
            self._idle.append(self._connect(START_TIMEOUT, wait=False))

    def request(
        self,
        verb: str,
        *,
        timeout: float,
        on_note: Callable[[Any], object] = lambda _note: None,
        again: bool = False,
        slack: float | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Ask the broker for something, and return its answer.

        :param timeout: seconds that the broker gives itself.
        :param on_note: called with what it has to say meanwhile.
        :param again: whether to ask another broker if this one dies over it.
        :param slack: seconds that its answer may take beyond that, where not the usual.
        :raises AnchorError: what the broker answers, or that it cannot be started, or has died.
        :raises WithdrawnError: it was withdrawn.
        """
        __tracebackhide__ = True
        delegation = THREAD.delegation
        if self._is_over:
            raise AnchorError(f"no session was created for {arguments.get('test', '?')}: the run is over")
        patience = timeout + (SLACK if slack is None else slack)
        message = System.encode({"verb": verb, "timeout": timeout, **arguments})
        self._threads.add(weakref.ref((delegation or THREAD).presence))
        self.used = True
        for _ in range(ATTEMPTS):
            connection = self._take(min(START_TIMEOUT, patience))
            try:
                answer = _exchange(connection, message, patience, on_note, delegation)
            except _ClosedError as closed:
                self._drop(connection)
                if delegation and delegation.is_withdrawn:
                    raise WithdrawnError(f"what was asked for, to {verb}, was withdrawn") from None
                self._drop_idle()  # they are the dead broker's, too
                if closed.sent and not again:
                    raise AnchorError(
                        f"the broker, the process that keeps this run's sessions, died while it was asked to {verb}: "
                        "what it may have created is looked for and ended by the next one. Was it killed by hand, "
                        "or for lack of memory?"
                    ) from None
            except TimeoutError:
                self._drop(connection)
                raise self._stuck(patience) from None
            except BaseException:  # Ctrl-C: the broker takes a closed connection for a request that is withdrawn
                self._drop(connection)
                raise
            else:
                return self._take_in(connection, answer)
        raise AnchorError("the broker, the process that keeps this run's sessions, dies as often as it is started")

    def _take_in(self, connection: _Connection, answer: dict[str, Any]) -> dict[str, Any]:
        __tracebackhide__ = True
        self.is_stuck = False
        delegation = THREAD.delegation
        if self._is_over or (delegation and delegation.is_withdrawn):  # perhaps just after the answer had come
            self._drop(connection)
        else:
            self._idle.append(connection)
        if "error" in answer:
            raise rebuild(answer["error"])
        return answer

    def watch(self, on_note: Callable[[Any], object], *, restarts: bool) -> None:
        """Read what the creations of the run wait for, until this process leaves it.

        The calling thread does not count among those that could end a session.

        :param restarts: whether a broker that dies is replaced at once, not with the next request: on other machines,
            the run counts as gone without one.
        :raises AnchorError: a broker cannot be started.
        """
        message = System.encode({"verb": "watch waits"})
        for _ in range(MOST_WATCHED if restarts else 1):
            connection = self._connect(START_TIMEOUT)
            try:
                connection.send(message)
                while True:
                    on_note(connection.receive(FOREVER)["note"])
            except (_ClosedError, TimeoutError, KeyError):
                pass
            finally:
                self._drop(connection)
            if self._is_leaving:
                return

    def leave(self) -> None:
        """Leave the run: nothing is asked for afterwards."""
        self._is_leaving = True
        if self._open and not self.is_stuck:
            with suppress(AnchorError):  # the kernel tells the broker that this process is gone
                self.request("goodbye", timeout=GOODBYE_TIMEOUT, slack=0.0)
        self._is_over = True
        self._drop_idle()

    def _stuck(self, seconds: float) -> AnchorError:
        self.is_stuck = True
        return AnchorError(
            f"the broker, the process that keeps this run's sessions, has not answered in {seconds:g} s: "
            "is it stopped? The run's end tries again."
        )

    def _take(self, timeout: float) -> _Connection:
        __tracebackhide__ = True
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            try:
                connection.greet(timeout)
            except _ClosedError:  # the broker that was started ahead did not come up
                self._drop(connection)
            except TimeoutError:
                self._drop(connection)
                raise self._stuck(timeout) from None
            except BaseException:
                self._drop(connection)
                raise
            else:
                return connection
        return self._connect(timeout)

    def _drop(self, connection: _Connection) -> None:
        self._open.discard(connection)
        connection.close()

    def _drop_idle(self) -> None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self._drop(connection)

    def _connect(self, timeout: float, *, wait: bool = True) -> _Connection:
        """Connect to the living broker, or start one.

        :param timeout: seconds to wait until it serves.
        """
        __tracebackhide__ = True
        if not System.is_complete:
            raise AnchorRegistryError(
                "this system cannot tell which processes live, so no session that is created here would be safe: "
                "run on Linux or macOS, or in WSL on Windows."
            )
        problem, started, generation = "", 0, self._generation
        check_folder(self.settings.socket_folder)  # it may be removed at any time, and another user may make one
        while started <= ATTEMPTS:
            path = f"{self.settings.socket_folder}/{generation}/socket"
            try:
                connection = _Connection(path)
            except FileNotFoundError:
                if started == ATTEMPTS:
                    break
                self._launcher.launch(generation, check_key(self.key))
                started += 1
                continue
            except OSError as error:
                if not isinstance(error, ConnectionRefusedError):
                    raise start_failure(str(error)) from None
                problem = self._log() if started else ""
                generation += 1
                continue
            try:
                self._say_hello(connection, timeout if wait else 0.0)
            except _ClosedError:  # it did not start, or was just leaving
                problem = self._log()
                generation += 1
            else:
                self._generation = generation  # those before it are dead
                return connection
        raise start_failure(problem or "it did not say why")

    def _say_hello(self, connection: _Connection, timeout: float) -> None:
        """Name this process to the broker, and wait until it serves.

        :param timeout: seconds; 0 does not wait.
        """
        self._open.add(connection)
        try:
            connection.send(System.encode({"verb": "hello", "owner": self.settings.owner, "pid": System.getpid()}))
            if timeout:
                connection.greet(timeout)
        except TimeoutError:
            self._drop(connection)
            self.is_stuck = True
            raise start_failure(f"it has not answered in {timeout:g} s") from None
        except BaseException:
            self._drop(connection)
            raise

    def _log(self) -> str:
        """The last line that a broker which did not start has left."""
        try:
            fd = System.open(f"{self.settings.socket_folder}/log", 0)
        except OSError:
            return ""
        try:
            return System.read(fd, 65536).decode("utf-8", "replace").strip().rpartition("\n")[2]
        finally:
            System.close(fd)


def _exchange(
    connection: _Connection,
    message: str,
    timeout: float,
    on_note: Callable[[Any], object],
    delegation: Delegation | None,
) -> dict[str, Any]:
    connection.send(message)
    if delegation:
        delegation.begin(connection)
    try:
        while "note" in (answer := connection.receive(timeout)):
            if delegation:  # what is said to the terminal, the test's own thread must say
                delegation.call_soon(on_note, answer["note"])
            else:
                on_note(answer["note"])
        if "ack" in answer:  # where this is interrupted before, the broker ends what was not received
            connection.confirm()
    finally:
        if delegation:
            delegation.finish()
    return answer


def _inode(fd: int) -> tuple[int, int]:
    info = System.fstat(fd)
    return info.st_dev, info.st_ino
