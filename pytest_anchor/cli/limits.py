"""``limits``: shows what the account may do, which runs use it, and what waits."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..budget import rules
from ..budget.file_store import FileStore
from ..budget.redis_server import RedisServer, ServerError, without_password
from ..budget.shared_store import account_key, verified
from ..errors import AnchorError, printable
from ..registry.locks import is_live
from ..reporting.progress import write
from ..reporting.summary import span
from ..settings import SHARED_LIMITS_VARIABLE, check_shared_limits, refuse_password
from .common import api_for, find_registry, print_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

    from ..api import AnchorAPI
    from ..budget.state import Lease, QueueEntry, State

    Row = dict[str, Any]

WATCH_INTERVAL = 1.0  # seconds
PLAN_TIMEOUT = 5.0  # seconds
_CLEAR = "\x1b[H\x1b[2J"


def limits(arguments: argparse.Namespace) -> int:
    """Show the limits once, or again and again."""
    refuse_password("--shared-limits", arguments.shared_limits or "")
    url = arguments.shared_limits or os.environ.get(SHARED_LIMITS_VARIABLE, "")
    registry = find_registry(arguments.registry)
    api = api_for(arguments)
    read, where = _server(url, api) if url else _file(registry, api)
    most = api.max_sessions(deadline=time.monotonic() + PLAN_TIMEOUT)
    registry = None if url else registry

    def show() -> None:
        state, now = read()
        _print({"store": where, **_describe(rules.expire(state, now), now, most, registry)}, arguments)

    if not arguments.watch:
        show()
        return 0
    with suppress(KeyboardInterrupt):
        while True:
            show()
            time.sleep(WATCH_INTERVAL)
    return 0


def _print(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_line(json.dumps(found, indent=None if arguments.watch else 2))
        return
    if arguments.watch and sys.stdout.isatty():
        write(sys.stdout, _CLEAR)
    _print_tables(found)


def _server(url: str, api: AnchorAPI) -> tuple[Callable[[], tuple[State, float]], str]:
    server = RedisServer(check_shared_limits("--shared-limits", url), account_key(api.account))
    where = printable(without_password(url, url))

    def read() -> tuple[State, float]:
        try:
            value, now = server.read()
        except ServerError as error:
            raise AnchorError(
                f"the limits cannot be read from {where}: {error}. Runs go on by their own limits meanwhile."
            ) from error
        return verified(value, api.sign), now

    return read, where


def _file(registry: Path | None, api: AnchorAPI) -> tuple[Callable[[], tuple[State, float]], str]:
    if registry is None:
        raise AnchorError(
            "there is no registry here or in a folder above: name one, --registry DIR, or the server that the runs "
            "share, --shared-limits URL"
        )
    return FileStore(registry, api.account, "", "").read, printable(str(registry))


def _describe(state: State, now: float, most: int | None, registry: Path | None) -> dict[str, Any]:
    return {
        "plan": {
            "sessions_at_once": most,
            "creations": state.quota or None,
            "window_seconds": state.window or None,
        },
        "open": len(state.slots),
        "begun_in_window": len(state.starts) if state.quota else None,
        "next_in_seconds": round(max(rules.next_start(state) - now, 0.0), 1),
        "runs": _runs(state, now, registry),
        "waiting": [_waiting(state, entry, now) for entry in state.queue],
    }


def _runs(state: State, now: float, registry: Path | None) -> list[Row]:
    held = Counter((slot.run, slot.use or "open") for slot in state.slots.values())
    waiting = Counter(entry.run for entry in state.queue)
    names = dict.fromkeys((*state.leases, *(run for run, _ in held), *waiting, *state.vanished))
    rows = []
    for name in names:
        lease = state.leases.get(name) or (state.vanished[name].lease if name in state.vanished else None)
        rows.append(
            {
                "run": name,
                "machine": lease.machine if lease else None,
                "shard": (lease.shard or None) if lease else None,
                **{use: held[name, use] for use in ("open", "ahead", "ending")},
                "waiting": waiting[name],
                "seen_seconds_ago": round(max(now - lease.seen, 0.0), 1) if lease else None,
                "state": _state_of(state, name, lease, registry),
            }
        )
    return rows


def _state_of(state: State, run: str, lease: Lease | None, registry: Path | None) -> str:
    if gone := state.vanished.get(run):
        return f"vanished, taken over by {gone.taker}" if gone.taker else "vanished"
    if lease is None and registry is not None:
        return "lives" if is_live(registry / run) else "dead"
    return "lives"


def _waiting(state: State, entry: QueueEntry, now: float) -> Row:
    lease = state.leases.get(entry.run)
    return {
        "place": entry.number,
        "test": entry.test,
        "run": entry.run,
        "machine": lease.machine if lease else None,
        "owner": entry.owner,
        "since_seconds": round(max(now - entry.asked, 0.0), 1),
        "for": "slot" if entry.waits_for_slot else "turn",
    }


def _print_tables(found: dict[str, Any]) -> None:
    plan = found["plan"]
    at_once = "unknown" if plan["sessions_at_once"] is None else plan["sessions_at_once"]
    print_line(f"{found['store']}: {found['open']} sessions open of {at_once} at once")
    if plan["creations"]:
        begun = f"{found['begun_in_window']} of {plan['creations']} creations begun in {plan['window_seconds']:g} s"
        pause = f"; the next in {found['next_in_seconds']:g} s" if found["next_in_seconds"] else ""
        print_line(f"{begun}{pause}")
    elif found["next_in_seconds"]:
        print_line(f"the API asked to wait: the next creation in {found['next_in_seconds']:g} s")
    runs = [{**row, "seen": _span(row["seen_seconds_ago"])} for row in found["runs"]]
    _print_table(runs, "run", "machine", "shard", "open", "ahead", "ending", "waiting", "seen", "state")
    waiting = [{**row, "since": _span(row["since_seconds"])} for row in found["waiting"]]
    _print_table(waiting, "place", "since", "for", "test", "owner", "run", "machine")


def _span(seconds: float | None) -> str | None:
    return None if seconds is None else span(seconds)


def _print_table(rows: list[Row], *names: str) -> None:
    if not rows:
        return
    shown = [["-" if row[name] is None else printable(str(row[name]), 80) for name in names] for row in rows]
    table = [[name.upper() for name in names], *shown]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    print_line("")
    for cells in table:
        print_line("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
