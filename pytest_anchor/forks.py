"""The hook for forks, in a module that imports next to nothing: until it exits, the interpreter keeps both.

PYTEST_DONT_REWRITE: every run with this plugin imports this, and it has no assertion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Connected(Protocol):
        """Has connections, which a forked child must not use."""

        def forget_parents(self) -> None:
            """In a child: close the parent's connections."""


def after_in_child(find: Callable[[], Connected | None]) -> Callable[[], None]:
    """Return a hook for ``os.register_at_fork``.

    :param find: a weak reference to what has connections, since the hook cannot be unregistered.
    """

    def forget_parents() -> None:
        if (connected := find()) is not None:
            connected.forget_parents()

    return forget_parents
