"""Failures to get a usable answer: whether one is worth another attempt, and how to describe it."""

from __future__ import annotations

import re
from http.client import HTTPException

import requests
import urllib3
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from .transport import TooLongError

# All that `requests` and what lies below it raise for a request that cannot be made, or an answer that cannot be read.
FAILURES = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    HTTPException,
    OSError,
    ValueError,
    OverflowError,
    TooLongError,
)
# Those of the network: a proxy's URL that cannot be parsed, or a certificate file that is missing, will fail again.
_TRANSIENT = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.HTTPError,
    HTTPException,
    ConnectionError,
    TimeoutError,
)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may fare better."""
    return isinstance(error, _TRANSIENT) and not isinstance(error, ValueError)


def is_unconnected(error: BaseException) -> bool:
    """Whether no connection came about, so that nothing was sent."""
    return any(isinstance(cause, (NewConnectionError, ConnectTimeoutError)) for cause in _chain(error))


def describe(error: BaseException) -> str:
    """What happened, in a few words."""
    chain = _chain(error)
    no_connection = any(isinstance(cause, NewConnectionError) for cause in chain)  # to urllib3 a kind of timeout
    timeouts = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    if not no_connection and any(isinstance(cause, timeouts) for cause in chain):
        return "no answer in time"
    # The innermost has the system's words; the others repeat them with an object's address.
    inner = next((cause for cause in reversed(chain) if isinstance(cause, OSError) and cause.strerror), chain[-1])
    text = (isinstance(inner, OSError) and inner.strerror) or str(inner) or type(inner).__name__
    text = re.sub(r"//[^/@\s]*@", "//***@", text)  # of a proxy's URL
    return text.rpartition(": ")[2] if no_connection else text


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it wraps: requests and urllib3 put the reason in ``reason`` or in ``args``."""
    chain: list[BaseException] = []
    todo: list[object] = [error]
    while todo:
        item = todo.pop()
        if isinstance(item, BaseException) and item not in chain:
            chain.append(item)
            todo += [getattr(item, "reason", None), *item.args]
    return chain
