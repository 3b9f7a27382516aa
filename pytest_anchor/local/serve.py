"""The server's life: from listening to having cleaned up."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING

from aiohttp import web

from .app import Api
from .chromium import Launcher, find
from .sessions import Sessions

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


async def serve(options: argparse.Namespace, key: str, watch: Callable[[], None] | None) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, or until *watch* returns; then end every session.

    :raises ChromiumError: there is no Chromium.
    :raises OSError: the port is taken.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Before the first Chromium: a signal from here on still cleans up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    launcher = None if options.browserless else Launcher(find(options.chromium))
    sessions = Sessions(
        launcher,
        rate=options.rate,
        cap=options.cap,
        create_latency=options.create_latency,
        end_latency=options.end_latency,
        credits_per_hour=options.credits_per_hour,
    )
    api = Api(sessions, key)
    runner = web.AppRunner(api.app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, options.host, options.port, backlog=1024)
        await site.start()
        port = runner.addresses[0][1]
        print(f"ANCHORBROWSER_BASE_URL={api.listen(options.host, port)}", flush=True)  # noqa: T201
        if not options.key_from_stdin:
            print(f"ANCHORBROWSER_API_KEY={key}", flush=True)  # noqa: T201
        if watch:
            threading.Thread(target=_watch, args=(watch, loop, stop), daemon=True).start()
        await stop.wait()
    finally:
        await sessions.close()
        await runner.cleanup()


def _watch(wait: Callable[[], None], loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    try:
        wait()
    except Exception as error:  # noqa: BLE001 - a backend that nobody watches must not stay
        print(f"The run cannot be watched: {error}", file=sys.stderr)  # noqa: T201
    with contextlib.suppress(RuntimeError):  # the loop is closed: a signal came first
        loop.call_soon_threadsafe(stop.set)
