"""What names a session: its id, and the tags that make it this plugin's, a run's, and one creation's."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

TAG = "pytest-anchor"
_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
MAX_TEXT = 80  # characters in a tag; a test's name is at the end of its id
_NEW = f"{TAG}:new="
_ALONE = f"{TAG}:alone="


def is_session_id(value: object) -> bool:
    """Whether *value* may become part of a URL.

    ``DELETE /v1/sessions/all`` ends every session of the account, so nothing that could be
    read as ``all`` or as another path ever gets that far.
    """
    return isinstance(value, str) and bool(_SESSION_ID.fullmatch(value)) and value.lower() != "all"


def run_tag(run_id: str) -> str:
    """The tag that every session of a run carries."""
    return f"{TAG}:run={run_id}"


def named_tag(name: str, text: str) -> str:
    """A tag for people who look at a session; of a *text* that is not plain, as much as is."""
    plain = re.sub(r"[^A-Za-z0-9._:/=()\[\] -]+", "_", text)
    return f"{TAG}:{name}={plain[-MAX_TEXT:]}"


def new_nonce(invocation: str) -> str:
    """A fresh name for one creation, which begins with the name of its invocation.

    A run id may be shared by the shards of a CI job; the invocation is not.
    """
    return f"{invocation}-{os.urandom(8).hex()}"


def new_tag(nonce: str) -> str:
    """The tag that only the session of one creation carries."""
    return f"{_NEW}{nonce}"


def nonce_of(tags: tuple[str, ...], invocation: str) -> str | None:
    """The nonce among *tags* if the session was created by *invocation*, else ``None``."""
    nonces = (tag.removeprefix(_NEW) for tag in tags if tag.startswith(_NEW))
    return next((nonce for nonce in nonces if nonce.startswith(f"{invocation}-")), None)


class Sign(NamedTuple):
    """How a run that is cut off from a server shows those that it shared it with that it lives.

    :param joins: how often it had joined them: the sign counts until it joins again.
    :param beat: rises as long as it lives.
    """

    joins: int
    beat: int

    @property
    def tag(self) -> str:
        """Its form among a session's tags."""
        return f"{_ALONE}{self.joins}.{self.beat}"


NO_SIGN = Sign(0, 0)


def sign_of(tags: tuple[str, ...]) -> Sign:
    """The latest sign among *tags*."""
    matches = (
        re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,9})", tag.removeprefix(_ALONE)) for tag in tags if tag.startswith(_ALONE)
    )
    return max((Sign(int(match[1]), int(match[2])) for match in matches if match), default=NO_SIGN)


def with_sign(tags: tuple[str, ...], sign: Sign) -> list[str]:
    """*tags* with *sign* in the place of an earlier one."""
    return [*(tag for tag in tags if not tag.startswith(_ALONE)), sign.tag]
