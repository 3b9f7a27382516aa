"""A stream of events, in whatever pieces it comes."""

from __future__ import annotations

import pytest

from pytest_anchor.forwarding.events import EventReader

STREAM = (
    "\ufeff: comment\n\nretry: 1500\nid: 1\ndata: one\n\ndata:two\r\ndata:  three\r\n\r\nevent: own\rdata: grün\r\r"
    "id: \0\nretry: soon\ndata\n\nevent: nothing\n\ndata: unfinished\n"
).encode()
EVENTS = [("message", "one", "1"), ("message", "two\n three", "1"), ("own", "grün", "1"), ("message", "", "1")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events(size: int):
    reader = EventReader("0")
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [tuple(event) for piece in pieces for event in reader.read(piece)] == EVENTS
    assert (reader.last_id, reader.retry) == ("1", 1.5)


def test_the_last_id_goes_on():
    (event,) = EventReader("9").read(b"data: x\n\n")
    assert event.last_id == "9"
