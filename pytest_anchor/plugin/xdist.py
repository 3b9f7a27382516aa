"""The messages between an xdist controller and its workers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..errors import AnchorError

if TYPE_CHECKING:
    from .state import Plugin

RECORDS_TIMEOUT = 30.0  # seconds


def settings_for(node: Any, plugin: Plugin) -> dict[str, Any]:
    """The controller's settings for a worker."""
    return plugin.client.settings.for_worker(node.workerinput["workerid"], shares_disk=_shares_disk(node))


def _shares_disk(node: Any) -> bool:
    return bool(node.gateway.spec.popen and not node.gateway.spec.via)


def take_records(node: Any, plugin: Plugin) -> None:
    """Take over what a worker with a registry of its own has on record; without one, only the API knows."""
    if _shares_disk(node):
        return
    records = getattr(node, "workeroutput", {}).get("pytest_anchor")
    if records is None:
        plugin.has_remote_workers = not plugin.client.settings.local  # a local backend there has gone with its worker
    elif records:
        with suppress(AnchorError):  # the final sweep meets the same, and reports it
            plugin.client.request("take records", timeout=RECORDS_TIMEOUT, records=records)
