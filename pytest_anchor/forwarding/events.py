"""Reads a stream of events, as EventSource has it."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Event(NamedTuple):
    """One event; *last_id* is the id that was named last, with it or before it."""

    type: str
    data: str
    last_id: str


class EventReader:
    """Makes events of the bytes of one response.

    :param last_id: what the response before it came to.
    """

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry: float | None = None  # seconds to wait before the next connection, where the server names them
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._text = ""
        self._type = ""
        self._data: list[str] = []

    def read(self, received: bytes) -> Iterator[Event]:
        """The events that are complete with *received*."""
        self._text += self._decode(received)
        held = "\r" if self._text.endswith("\r") else ""  # its \n may be to come
        text = self._text.removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n")
        *lines, rest = text.split("\n")
        self._text = rest + held
        for line in lines:
            if line:
                self._take(line)
            elif self._data:
                yield Event(self._type or "message", "\n".join(self._data), self.last_id)
            if not line:
                self._type, self._data = "", []

    def _take(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._type = value
        elif field == "id" and "\0" not in value:
            self.last_id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value) / 1000
