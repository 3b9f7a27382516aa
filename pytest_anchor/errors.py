"""What can go wrong, as sentences with a remedy.

AnchorError
├── AnchorConfigError          a setting is missing or bad; nothing was sent
├── AnchorRegistryError        the record on disk cannot be kept
├── AnchorConnectionError      Playwright cannot connect to a session
├── AnchorLimitError           the wait for the plan's limits took too long; nothing was created
└── AnchorAPIError             the API refused, answered nonsense, or did not answer
    └── AnchorLostCreateError  a creation whose outcome is not known
"""

from __future__ import annotations

from typing import Any, NamedTuple

SHOWN_OF_KEY = 5  # characters of a key that may be seen where a text was cut off in its midst


def printable(text: str, limit: int = 300) -> str:
    """Return *text* fit for a terminal: control characters escaped, at most *limit* characters.

    Whatever the API sends passes through here before a person sees it.
    """
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Secret(str):
    """A text with a key in it, which no traceback shows: pytest prints a frame's variables by their ``repr``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def redact(text: str, key: str) -> str:
    """Return *text* without *key*, in whatever form a URL or a ``repr`` gives it, cut off in the middle or not."""
    for form in (str(key), _quoted(key), _quoted(key, "/"), repr(str(key))[1:-1]):
        text = text.replace(form, "***")
    if "..." in text:  # pytest cuts what is long so
        for length in range(len(key) - 1, SHOWN_OF_KEY, -1):
            text = text.replace(f"{key[:length]}...", "***...").replace(f"...{key[-length:]}", "...***")
    return text


def _quoted(text: str, safe: str = "") -> str:
    """As ``urllib.parse.quote``, which a test may have replaced."""
    plain = (
        chr(byte) if byte < 128 and (chr(byte).isalnum() or chr(byte) in f"_.-~{safe}") else f"%{byte:02X}"
        for byte in text.encode("utf-8", "surrogatepass")
    )
    return "".join(plain)


class AnchorError(Exception):
    """Base of every error that this plugin raises."""


class AnchorConfigError(AnchorError):
    """A setting is missing or cannot be used; no request was made."""


class AnchorRegistryError(AnchorError):
    """The registry cannot be written, read or trusted."""


class AnchorLimitError(AnchorError):
    """The plan allows no further session now, and waiting for it is over or pointless."""


class AnchorConnectionError(AnchorError):
    """Playwright cannot connect to a session's browser."""


class Limit(NamedTuple):
    """The limit that an answer of 429 describes; ``None`` for what it leaves out."""

    retry_after: float | None  # seconds
    quota: int | None  # requests that are allowed in each window
    window: float | None  # seconds


class AnchorAPIError(AnchorError):
    """The API refused, failed, answered nonsense, or did not answer.

    :param what: what was asked for, for example ``"create a session"``.
    :param status: the HTTP status, or ``None`` where no usable answer came.
    :param code: the API's own error code, ``""`` if it gave none.
    :param message: the API's words, or what happened to the connection.
    :param remedy: what the reader can do about it.
    :param tries: how often it was asked, from 1; 0 where the API had asked all to wait, and nothing was sent.
    :param limit: the limit that a 429 describes; it is not part of :meth:`fields`, and lost in pickling.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int | None = None,
        code: str = "",
        message: str = "",
        remedy: str = "",
        tries: int = 1,
        limit: Limit | None = None,
    ) -> None:
        self.what = what
        self.status = status
        self.code = printable(code, 60)
        self.message = printable(message)
        self.remedy = printable(remedy)  # it may come from a record on disk
        self.tries = tries
        self.limit = limit
        super().__init__(what)

    def __str__(self) -> str:
        text = f"could not {self.what}: {self.reason}"
        return f"{text}. {self.remedy}" if self.remedy else text

    @property
    def reason(self) -> str:
        """Status, code, the API's words and the number of tries, in one phrase."""
        words = f"“{self.message}”" if self.status is not None and self.message else self.message
        head = [] if self.status is None else [f"HTTP {self.status}"]
        if self.code and self.code != str(self.status):
            head.append(f"code {self.code}")
        text = ": ".join(part for part in (" ".join(head), words) if part) or "no answer"
        return f"{text} (tried {self.tries} times)" if self.tries > 1 else text

    @property
    def is_transient(self) -> bool:
        """Whether the same request may fare better: no usable answer came, or one that the API takes back soon."""
        return self.status is None or is_transient_status(self.status)

    def fields(self) -> dict[str, Any]:
        """All but *what* was asked for, as plain built-ins."""
        return {name: getattr(self, name) for name in ("status", "code", "message", "remedy", "tries")}

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling of exceptions.
        return _rebuild, (type(self), self.what, self.fields())


class AnchorLostCreateError(AnchorAPIError):
    """A creation without a usable answer: a session may exist whose id is not known.

    The run looks for it by its tag and ends it.
    """


def is_transient_status(status: int) -> bool:
    """Whether the same request may fare better after an answer with this HTTP status."""
    return status in (408, 429) or (status >= 500 and status != 501)


def fields_of(error: Exception) -> dict[str, Any]:
    """An error as plain built-ins, for another process; of a class that it does not know, the nearest that it does."""
    if not isinstance(error, (AnchorError, TypeError, ValueError)):
        return {"type": "AnchorError", "message": f"an unexpected error, please report it: {error!r}"}
    known = _known()
    name = next(cls.__name__ for cls in type(error).__mro__ if known.get(cls.__name__) is cls)
    if isinstance(error, AnchorAPIError):
        return {"type": name, "what": error.what, "fields": error.fields()}
    return {"type": name, "message": str(error)}


def rebuild(values: dict[str, Any]) -> Exception:
    """What :func:`fields_of` made, as an error again."""
    cls = _known()[values["type"]]
    error: Exception = cls(values["what"], **values["fields"]) if "fields" in values else cls(values["message"])
    return error


def _known() -> dict[str, Any]:
    """The classes that every process of the run knows, by name."""
    return {"TypeError": TypeError, "ValueError": ValueError, **globals()}


def _rebuild(cls: type[AnchorAPIError], what: str, fields: dict[str, Any]) -> AnchorAPIError:
    return cls(what, **fields)
