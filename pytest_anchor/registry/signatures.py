"""Which records may be acted on: they lie on a disk, where they can be copied and edited."""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..api import AnchorAPI
    from .journal import Run
    from .records import Record


def is_created_with(record: Record, api: AnchorAPI) -> bool:
    """Whether the record's session was created with this key, at this base URL."""
    return (record.base_url, record.fingerprint) == (api.base_url, api.fingerprint)


def is_signed(api: AnchorAPI, run: Run, record: Record) -> bool:
    """Whether this run, with this key and base URL, has created the session."""
    of_this_run = record.nonce.startswith(f"{run.folder.name}-") and run.owns(record)
    return of_this_run and compare_digest(record.signature, api.sign(record.nonce, str(record.id)))
