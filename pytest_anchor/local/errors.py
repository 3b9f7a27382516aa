"""What the local backend answers instead of an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """An answer of 400 or above, in the API's shape.

    :param code: the HTTP status.
    :param message: a sentence for the user.
    :param headers: sent along with the answer.
    """

    def __init__(self, code: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.headers = headers


class ChromiumError(Exception):
    """No Chromium was found, or it did not start, or it does not answer."""
