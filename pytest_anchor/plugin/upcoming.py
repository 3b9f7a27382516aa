"""What sessions a test asks for by its defaults and markers, and which tests come next."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest

from ..configuration import Wanted, check_keywords, merge
from ..launcher import can_be_sent, getpid
from ..settings import KEYWORDS

FIXTURE = "anchor_session"
CONNECTION = "_anchor_connection"  # of a test whose browser is launched on a session of its own
DEFAULTS = "anchor_session_defaults"
LOOK_AHEAD = 100  # tests among which the next that want a session are looked for
NODES: dict[str, type[pytest.Collector]] = {
    "class": pytest.Class,
    "module": pytest.Module,
    "package": pytest.Package,
    "session": pytest.Session,
}


def configuration(node: pytest.Item | pytest.Collector, suite: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that the suite's defaults and the markers of *node* give.

    :raises TypeError: they are no such configuration.
    """
    __tracebackhide__ = True
    if not isinstance(suite, Mapping):
        raise TypeError(f"{DEFAULTS} must return a mapping, not {type(suite).__name__}")
    check_keywords(suite, DEFAULTS)
    merged = merge({}, suite)
    for mark in reversed(list(node.iter_markers("anchor"))):  # from the module down to the test
        if mark.args:
            raise TypeError(f"the anchor marker takes keywords only: {', '.join(KEYWORDS)}")
        check_keywords(mark.kwargs, "the anchor marker")
        merged = merge(merged, mark.kwargs)
    return merged


class UpcomingTests:
    """The tests that come next in this process, as far as it can tell; in a child that a test forks, none.

    :param at_most: how many that want a session.
    """

    def __init__(self, at_most: int) -> None:
        self._pid = getpid()
        self._at_most = at_most
        self._position = -1
        self._next: pytest.Item | None = None
        self._source: object = None
        self._suite: Mapping[str, Any] = {}
        self._launch: Mapping[str, Any] = {}

    def begins(self, item: pytest.Item, next_item: pytest.Item | None) -> None:
        """Take in that *item* begins, and that *next_item* is to follow."""
        items = item.session.items
        places = range(self._position + 1, len(items))  # an item that was passed already is not found
        self._position = next((place for place in places if items[place] is item), -1)
        self._next = next_item

    def saw(self, item: pytest.Item | pytest.Collector, suite: Mapping[str, Any]) -> None:
        """Take in what the fixture for the suite's defaults gave to *item*."""
        if source := _known_source_of_defaults(item):
            self._source, self._suite = source, suite

    def launched(self, keywords: Mapping[str, Any]) -> None:
        """Take in what a test's browser was launched with, which the next ones are likely to be as well."""
        self._launch = keywords

    def wanted_by(self, item: pytest.Item) -> Wanted | None:
        """What *item* asks for first, if it can be told before it runs."""
        source = _known_source_of_defaults(item)
        names = getattr(item, "fixturenames", ())
        if FIXTURE not in names or source is None or source != self._source:
            return None
        with suppress(Exception):  # markers hold anything; the test itself will say so
            launch = self._launch if CONNECTION in names else {}
            wanted = Wanted(item.nodeid, merge(configuration(item, self._suite), launch))
            if can_be_sent(wanted) and not _is_skipped(item):
                return wanted
        return None

    def after(self, item: pytest.Item) -> list[Wanted]:
        """What the tests after *item* will ask for, the next first."""
        first = self._position + 1
        following = item.session.items[first : first + LOOK_AHEAD]
        if self._next is None or getpid() != self._pid:
            following = []
        elif not following or following[0] is not self._next:
            following = [self._next]  # an xdist worker's, or another plugin's own order
        found: list[Wanted] = []
        for one in following:
            if len(found) < self._at_most and (wanted := self.wanted_by(one)):
                found.append(wanted)
        return found


def source_of_defaults(item: pytest.Item | pytest.Collector | None) -> object:
    """The fixture that *item* has its defaults from; ``None`` where it has none."""
    definitions = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {}).get(DEFAULTS, ())
    return definitions[-1] if definitions else None


def _known_source_of_defaults(item: pytest.Item | pytest.Collector) -> object:
    """What *item* has its defaults from; ``None`` where their value may be another for each test."""
    definitions = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    if DEFAULTS not in definitions:
        return None
    names, new = set(), {DEFAULTS}
    while new:
        names |= new
        new = {name for one in new for fixture in definitions.get(one, ()) for name in fixture.argnames} - names
    if not names.isdisjoint(getattr(getattr(item, "callspec", None), "params", ())):
        return None
    fixture = definitions[DEFAULTS][-1]
    node = item.getparent(NODES[fixture.scope]) if fixture.scope in NODES else None
    return node and (fixture, node)


def _is_skipped(item: pytest.Item) -> bool:
    """Whether *item* is surely not run."""
    return (
        item.get_closest_marker("skip") is not None
        or any(map(_applies, item.iter_markers("skipif")))
        or any(mark.kwargs.get("run") is False and _applies(mark) for mark in item.iter_markers("xfail"))
    )


def _applies(mark: pytest.Mark) -> bool:
    """Whether one of the conditions of *mark* surely holds; a text, which pytest evaluates, may not."""
    conditions = [mark.kwargs["condition"]] if "condition" in mark.kwargs else mark.args
    return not conditions or any(not isinstance(one, str) and one for one in conditions)
