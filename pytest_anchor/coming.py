"""What sessions a test asks for by its defaults and markers, and which tests come next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .prefetch import Wanted
from .session import check_keywords, merge
from .settings import KEYWORDS

if TYPE_CHECKING:
    import pytest

FIXTURE = "anchor_session"
DEFAULTS = "anchor_session_defaults"
LOOK_AHEAD = 100  # tests among which the next that want a session are looked for


def configuration(node: pytest.Item | pytest.Collector, suite: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that the suite's defaults and the markers of *node* give.

    :raises TypeError: they are no such configuration.
    """
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


class Coming:
    """The tests that come next in this process, as far as it can tell.

    :param at_most: how many that want a session.
    """

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._position = -1
        self._next: pytest.Item | None = None
        self._source: object = None
        self._suite: Mapping[str, Any] = {}

    def begins(self, item: pytest.Item, next_item: pytest.Item | None) -> None:
        """Take in that *item* begins, and that *next_item* is to follow."""
        items = item.session.items
        expected = self._position + 1
        if expected >= len(items) or items[expected] is not item:
            expected = next((index for index, one in enumerate(items) if one is item), -1)
        self._position, self._next = expected, next_item

    def saw(self, item: pytest.Item | pytest.Collector, suite: Mapping[str, Any]) -> None:
        """Take in what the fixture for the suite's defaults gave to *item*."""
        if source := _source_of_defaults(item):
            self._source, self._suite = source, suite

    def wanted_by(self, item: pytest.Item) -> Wanted | None:
        """What *item* asks for first, if it can be told before it runs."""
        source = _source_of_defaults(item)
        if FIXTURE not in getattr(item, "fixturenames", ()) or source is None or source is not self._source:
            return None
        if _is_skipped(item):
            return None
        try:
            return Wanted(item.nodeid, configuration(item, self._suite))
        except TypeError:
            return None  # the test itself will say so

    def after(self, item: pytest.Item) -> list[Wanted]:
        """What the tests after *item* will ask for, the next first."""
        first = self._position + 1
        following = item.session.items[first : first + LOOK_AHEAD]
        if self._next is None:
            following = []
        elif not following or following[0] is not self._next:
            following = [self._next]  # an xdist worker's, or somebody's own order
        found: list[Wanted] = []
        for one in following:
            if len(found) < self._at_most and (wanted := self.wanted_by(one)):
                found.append(wanted)
        return found


def _source_of_defaults(item: pytest.Item | pytest.Collector) -> object:
    """Which fixture gives *item* its defaults; ``None`` where its value may be another for each test."""
    info = getattr(item, "_fixtureinfo", None)
    definitions = getattr(info, "name2fixturedefs", {}).get(DEFAULTS)
    if not definitions or definitions[-1].scope == "function":
        return None
    params = getattr(getattr(item, "callspec", None), "params", {})
    return None if DEFAULTS in params else definitions[-1]


def _is_skipped(item: pytest.Item) -> bool:
    """Whether *item* is surely not run."""
    return (
        item.get_closest_marker("skip") is not None
        or any(mark.args[:1] == (True,) for mark in item.iter_markers("skipif"))
        or any(mark.kwargs.get("run") is False for mark in item.iter_markers("xfail"))
    )
