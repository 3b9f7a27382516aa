"""The test machine's localhost, for a browser elsewhere. This module is the test process's side of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..client import Client
    from ..session import AnchorSession

TIMEOUT = 60.0  # seconds until the browser must be attached to


def forward(client: Client, session: AnchorSession) -> str:
    """Have requests of a session's browser for this machine's localhost answered from here.

    Call it before anything else connects to the browser: what is open by then is met all the same, but requests that
    are under way are not. It does nothing where forwarding is off, and nothing a second time.

    :returns: ``""``, or a sentence for the user on why it is not done; the same sentence only once in a run.
    :raises AnchorError: the broker cannot be asked.
    """
    if client.settings.forward == "off":
        return ""
    answer = client.request("forward", timeout=TIMEOUT, again=True, nonce=session.nonce)
    return str(answer["problem"])


def note_contexts(client: Client, session: AnchorSession, credentials: tuple[str, str] | None = None) -> None:
    """Have this machine's servers answered with *credentials* in the contexts that are new since the last call.

    :param credentials: user and password.
    :raises AnchorError: the broker cannot be asked.
    """
    client.request("forward contexts", timeout=TIMEOUT, again=True, nonce=session.nonce, credentials=credentials)
