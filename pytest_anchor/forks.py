"""What is done after a fork. The interpreter keeps that to its very end, with all that its module leads to: nothing.

PYTEST_DONT_REWRITE: every run with this plugin imports this, and it has no assertion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Parent(Protocol):
        """What has connections that are not a child's."""

        def forget_parents(self) -> None:
            """Close them, in a child."""


def after_in_child(find: Callable[[], Parent | None]) -> Callable[[], None]:
    """A hook for ``os.register_at_fork``.

    :param find: a weak reference: the hook cannot be taken back.
    """

    def forget_parents() -> None:
        if (parent := find()) is not None:
            parent.forget_parents()

    return forget_parents
