"""What a helper thread asks the broker for on behalf of a task of an event loop."""

from __future__ import annotations

from _thread import _local, allocate_lock, get_ident
from typing import TYPE_CHECKING

from .errors import AnchorError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Connection(Protocol):
        """What can be closed so that the thread which reads from it hears of it."""

        def shut_down(self) -> None:
            """Close both directions."""


class WithdrawnError(AnchorError):
    """The task that has asked for something is cancelled: see :class:`Delegation`."""


class Delegation:
    """What a helper thread asks for on behalf of a task of an event loop, which may be cancelled meanwhile.

    :param call_soon: has the event loop call a function with arguments, from any thread.
    :param others_go_on: whether another task of the loop may end a session meanwhile.
    """

    def __init__(self, call_soon: Callable[..., object], *, others_go_on: bool) -> None:
        self.presence = THREAD.presence
        self.call_soon = call_soon
        self.others_go_on = others_go_on
        self.is_withdrawn = False
        self._lock = allocate_lock()
        self._connection: Connection | None = None

    def withdraw(self) -> None:
        """Close the connection of what was asked for, at the earliest when it has been sent.

        So the broker decides what that means: a creation is cancelled, an end goes on. Safe in any thread.
        """
        with self._lock:
            self.is_withdrawn = True
            if self._connection is not None:
                self._connection.shut_down()

    def begin(self, connection: Connection) -> None:
        """Take in that an answer is waited for."""
        with self._lock:
            self._connection = connection
            if self.is_withdrawn:
                connection.shut_down()

    def finish(self) -> None:
        """Take in that the connection may be used for something else."""
        with self._lock:
            self._connection = None


class Presence:
    """Lives in a thread's own storage, and so exactly as long as the thread.

    ``sys._current_frames`` would tell the same, but may deadlock a process that starts threads meanwhile: before
    CPython 3.12, a garbage collection in it lets other threads run while it holds the interpreter's list of threads.
    """

    __slots__ = ("__weakref__", "thread")

    def __init__(self) -> None:
        self.thread = get_ident()


class _Thread(_local):
    """What belongs to the running thread."""

    delegation: Delegation | None = None  # if it is a helper

    def __init__(self) -> None:
        self.presence = Presence()


THREAD = _Thread()
