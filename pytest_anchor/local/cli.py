"""The command line: ``python -m pytest_anchor local``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import os
import secrets
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from ..registry.locks import hold, wait_until_over
from ..settings import CHROMIUM_VARIABLE
from .errors import ChromiumError
from .launch import ALIVE
from .limits import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable

# Read as early as can be: a parent that dies later is noticed, even before the server is up.
_PARENT = os.getppid()
_PARENT_WATCH = 0.2  # seconds
_DAY = 86400


def main(argv: list[str]) -> int:
    """Serve until a signal, or until the parent process or the watched run is gone.

    :param argv: the arguments after ``local``.
    :returns: the exit status: 0, or 2 when it could not start.
    """
    options = _parser().parse_args(argv)
    try:
        from .serve import serve
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        return _fail("The local backend needs aiohttp: pip install 'pytest-anchor[local]'.")
    key = sys.stdin.readline().strip() if options.key_from_stdin else f"local-{secrets.token_hex(16)}"
    if not (key.isascii() and key.isprintable() and key):
        return _fail("The first line of standard input is no API key: it must be printable ASCII.")
    try:
        asyncio.run(serve(options, key, _watch(options)))
    except (ChromiumError, OSError) as error:
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def _watch(options: argparse.Namespace) -> Callable[[], None] | None:
    """Return what blocks until nobody is left who needs the backend; ``None`` to stay."""
    if options.watch_run:
        hold(options.watch_run / ALIVE)  # for as long as this process lives
        return lambda: wait_until_over(options.watch_run)
    return None if options.keep else _wait_for_parent


def _wait_for_parent() -> None:
    # Whatever way it dies, an orphan gets another parent. No signal of the kernel's is as sure:
    # Linux's parent-death signal is about the thread that forked.
    while os.getppid() == _PARENT:
        threading.Event().wait(_PARENT_WATCH)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_anchor local",
        description="Serve Anchor's sessions API on loopback, with a local Chromium for each session. "
        "The first two lines of output are the environment that a suite or the official SDK needs to use it. "
        "It ends with the process that started it.",
        epilog="A session's live_view_url is a page that shows it and takes mouse and keyboard. A session created with "
        '{"session": {"recording": {"active": true}}} is recorded as MP4, if pytest-anchor[recording] is installed. '
        "There is no proxy, no captcha solver and no stored profile or identity: a session that asks for what a test "
        "would miss is refused with a 400.",
    )
    parser.add_argument("--host", type=_loopback, default="127.0.0.1", help="loopback address (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=0, help="port; 0 takes any free one (default)")
    browser = parser.add_mutually_exclusive_group()
    browser.add_argument(
        "--chromium", metavar="PATH", help=f"the Chromium to use (default: ${CHROMIUM_VARIABLE}, or the first found)"
    )
    browser.add_argument("--browserless", action="store_true", help="start no Chromium: sessions are mere records")
    parser.add_argument("--rate", type=_rate, metavar="N/SECONDS", help="limit creations, for example 5/60")
    parser.add_argument("--cap", type=_count, metavar="N", help="limit how many sessions run at once")
    for name in ("create", "end"):
        parser.add_argument(
            f"--{name}-latency", type=_seconds, default=0.0, metavar="SECONDS", help=f"{name} this much later"
        )
    parser.add_argument(
        "--credits-per-hour",
        type=_amount,
        default=0.0,
        metavar="N",
        help="what the API says that a session costs (default: nothing)",
    )
    parser.add_argument(
        "--key-from-stdin",
        action="store_true",
        help="take the API key from the first line of standard input, and do not print it (default: a random key)",
    )
    life = parser.add_mutually_exclusive_group()
    life.add_argument(
        "--watch-run",
        type=_folder,
        metavar="DIR",
        help="end when no process of the run with that registry folder is left, rather than with the parent",
    )
    life.add_argument("--keep", action="store_true", help="stay when the process that started this ends")
    return parser


def _loopback(text: str) -> str:
    with contextlib.suppress(ValueError):
        if text == "localhost" or ipaddress.ip_address(text).is_loopback:
            return text
    raise argparse.ArgumentTypeError(f"{text!r} is not loopback; the backend serves this machine only: use 127.0.0.1")


def _rate(text: str) -> RateLimit:
    try:
        return RateLimit.parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not N/SECONDS, as in 5/60") from None


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, a number from 0 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= _DAY:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")


def _amount(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1e6:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of credits")


def _folder(text: str) -> Path:
    folder = Path(text)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return folder
