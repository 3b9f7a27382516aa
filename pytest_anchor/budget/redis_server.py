"""One value on a Redis or Valkey server, read with the server's clock, and replaced only where it is unchanged.

The one module that imports redis-py, and only where a run shares its limits. Two round trips make a change: a read,
and a compare-and-set in Lua. That needs no connection of its own for a transaction, and names one key only: so it works
behind proxies that take turns on a connection, and with each managed server that runs scripts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 2.0  # seconds for a connection, and for each answer
MAX_VALUE = 4 << 20  # bytes
HEADER = 32  # bytes at the beginning of a value, which no two values share
LIFETIME = 4000.0  # seconds after which a value that is not written again is gone: longer than a policy is trusted

_REPLACE = f"""
if redis.call('GETRANGE', KEYS[1], 0, {HEADER - 1}) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""


class ServerError(Exception):
    """The server cannot be used at the moment; the text says why, without the password."""


class Reading(NamedTuple):
    """What the server had: the value, empty where there is none, and the time in seconds since its epoch."""

    value: bytes
    now: float


class RedisServer:
    """The value of one key. To be used by one thread.

    :param url: as redis-py reads it: ``redis://``, ``rediss://`` or ``unix://``.
    """

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key
        self._client: Any = None

    def read(self) -> Reading:
        """Read the value.

        :raises ServerError: there is no usable answer.
        """
        value, moment = self._ask(
            lambda client: (
                client.pipeline(transaction=False).getrange(self._key, 0, MAX_VALUE).time().execute()  # one round trip
            )
        )
        if not isinstance(value, bytes) or len(value) > MAX_VALUE:
            raise ServerError("its value is not one of ours")
        try:
            seconds, micros = moment
            now = int(seconds) + int(micros) / 1e6
        except (TypeError, ValueError) as error:
            raise ServerError("it does not tell the time") from error
        if not 0 < now < 1e12:
            raise ServerError("it does not tell the time")
        return Reading(value, now)

    def replace(self, before: bytes, value: bytes) -> bool:
        """Set the value, unless it has been changed since it was *before*.

        :returns: whether it was set.
        :raises ServerError: there is no usable answer; the value may have been set.
        """
        if len(value) > MAX_VALUE:
            raise ServerError("there is too much to store")
        header, lifetime = before[:HEADER], int(LIFETIME * 1000)
        return bool(self._ask(lambda client: client.eval(_REPLACE, 1, self._key, header, value, lifetime)) == 1)

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        try:
            if self._client is None:
                self._client = self._connect()
            return question(self._client)
        except ImportError as error:
            raise ServerError("redis-py is not installed: pip install 'pytest-anchor[redis]'") from error
        except Exception as error:  # whatever a server, a proxy or a hostile peer makes of it
            raise ServerError(self._describe(error)) from error

    def _connect(self) -> Any:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        checks = {"ssl_check_hostname": True} if self._url.startswith("rediss:") else {}  # older ones do not
        return Redis.from_url(
            self._url,
            **checks,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),  # a change must not be sent twice
            protocol=2,
            client_name="pytest-anchor",
        )

    def _describe(self, error: Exception) -> str:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return printable(without_password(text, self._url), 200)


def without_password(text: str, url: str) -> str:
    """Return *text* without what is secret in *url*."""
    from urllib.parse import unquote

    parts = urlsplit(url)
    secrets = [parts.password or "", *(value for name, value in _query(parts.query) if name == "password")]
    for secret in secrets:
        for form in {secret, unquote(secret)} - {""}:
            text = text.replace(form, "***")
    return text


def _query(query: str) -> list[tuple[str, str]]:
    from urllib.parse import parse_qsl

    return parse_qsl(query)
