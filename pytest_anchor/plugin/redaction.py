"""Keeps the key out of reports: a ``cdp_url`` contains it, and tests print, compare and record such a URL."""

from __future__ import annotations

import logging
from contextlib import suppress
from inspect import ismemberdescriptor
from typing import TYPE_CHECKING, Any

from ..errors import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

DEPTH = 12  # of what is looked into


def clean(text: str, key: str) -> str:
    """*text* without the key."""
    return redact(text, key)


def clean_value(value: Any, key: str, depth: int = DEPTH) -> Any:
    """*value* without the key, as a new object where it held it: text, or a container of text."""
    if isinstance(value, (str, bytes)):
        text = value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")
        if (cleaned := redact(text, key)) == text:
            return str(value) if type(value) not in (str, bytes) and isinstance(value, str) else value
        return cleaned if isinstance(value, str) else cleaned.encode("utf-8", "surrogateescape")
    if depth and type(value) in (list, tuple, set, frozenset):
        return type(value)(clean_value(item, key, depth - 1) for item in value)
    if depth and type(value) is dict:
        return {clean_value(name, key, depth - 1): clean_value(item, key, depth - 1) for name, item in value.items()}
    return value


def clean_tree(value: object, key: str, depth: int = DEPTH) -> None:
    """Take the key out of an object, in place: of its attributes, and of theirs."""
    attributes = getattr(value, "__dict__", None)
    if not depth or attributes is None or isinstance(value, type):
        return
    for name, item in list(attributes.items()):
        for inner in _flat(item):
            if type(inner).__module__.startswith(("_pytest", "pytest", "xdist")):
                clean_tree(inner, key, depth - 1)
        if isinstance(item, (str, bytes, list, tuple)) and (cleaned := clean_value(item, key)) != item:
            object.__setattr__(value, name, cleaned)  # some are frozen


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)
    else:
        yield value


def clean_exception(error: BaseException | None, key: str) -> None:
    """Take the key out of an exception's arguments, attributes and notes, and out of those that led to it."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        item = todo.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        # Past their own ``__setattr__``: some are frozen.
        if (args := clean_value(item.args, key)) != item.args:
            BaseException.args.__set__(item, args)  # type: ignore[attr-defined]
        for name, value in list(vars(item).items()):
            if isinstance(value, (str, list)) and (cleaned := clean_value(value, key)) != value:
                vars(item)[name] = cleaned
        for member in filter(ismemberdescriptor, (value for cls in type(item).__mro__ for value in vars(cls).values())):
            with suppress(AttributeError, TypeError):  # it is not set, or cannot be
                value = member.__get__(item)
                if isinstance(value, str) and (cleaned := clean_value(value, key)) != value:
                    member.__set__(item, cleaned)  # an OSError's ``strerror``, and whatever is in slots
        todo += [item.__cause__, item.__context__, *getattr(item, "exceptions", ())]


def clean_suite_properties(config: pytest.Config, key: str) -> None:
    """Take the key out of what ``record_testsuite_property`` has kept for the JUnit report."""
    for plugin in config.pluginmanager.get_plugins():
        properties = getattr(plugin, "global_properties", None)
        if isinstance(properties, list):
            properties[:] = clean_value(properties, key)


def clean_logs(secret: Callable[[], str | None]) -> Callable[[], None]:
    """Take the key out of log records as they are made: some plugins write these, and not their text, to files.

    :returns: what ends that, unless the factory of records has been replaced again since.
    """
    make_record = logging.getLogRecordFactory()

    def make_clean_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        if (key := secret()) is not None:
            with suppress(Exception):  # a record whose arguments do not fit: logging itself says so
                message = record.getMessage()
                if (cleaned := redact(message, key)) != message:
                    record.msg, record.args = cleaned, ()
            if record.exc_info:
                clean_exception(record.exc_info[1], key)
        return record

    def restore() -> None:
        if logging.getLogRecordFactory() is make_clean_record:
            logging.setLogRecordFactory(make_record)

    logging.setLogRecordFactory(make_clean_record)
    return restore


def clean_sections(item: pytest.Item, key: str) -> None:
    """Take the key out of what a test has printed and logged so far, which its reports are made of."""
    sections = getattr(item, "_report_sections", None)
    if isinstance(sections, list):
        sections[:] = clean_value(sections, key)


def clean_report(report: pytest.TestReport, key: str) -> None:
    """Take the key out of a report."""
    longrepr = report.longrepr
    if isinstance(longrepr, (str, tuple)):
        report.longrepr = clean_value(longrepr, key)
    elif longrepr is not None:
        clean_tree(longrepr, key)
        if redact(text := str(longrepr), key) != text:
            report.longrepr = redact(text, key)
    if hasattr(report, "wasxfail"):
        report.wasxfail = clean_value(report.wasxfail, key)
    report.sections = clean_value(report.sections, key)
    # xdist sends plain text only: a handle's URL becomes that, too.
    report.user_properties = [(str(name), clean_value(value, key)) for name, value in report.user_properties]
