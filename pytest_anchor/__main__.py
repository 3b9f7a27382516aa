"""The command line for what lies outside a run: ``python -m pytest_anchor``."""

from __future__ import annotations

import argparse
import os
import sys
import time

from .errors import AnchorError, printable
from .settings import (
    BASE_URL_VARIABLE,
    DEFAULT_BASE_URL,
    KEY_VARIABLES,
    check_base_url,
    check_key,
    key_from_environment,
)
from .tags import TAG

END_TIMEOUT = 60.0  # seconds for each session


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status: 0 when all went well, 1 or 2 when not."""
    parser = argparse.ArgumentParser(
        prog="python -m pytest_anchor", description="Anchor Browser sessions outside a pytest run."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("local", help="serve Anchor's API on this machine with local Chromium", add_help=False)
    end = commands.add_parser(
        "end", help="end sessions by their ids", description=f"End sessions; the key is read from {KEY_VARIABLES[0]}."
    )
    end.add_argument("ids", nargs="+", metavar="ID")
    end.add_argument("--base-url", default=os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL, metavar="URL")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "local":
        from .local.cli import main as local

        return local(rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _end(arguments.base_url, arguments.ids)
    except AnchorError as error:
        print(error, file=sys.stderr)
        return 2


def _end(base_url: str, ids: list[str]) -> int:
    from .api import AnchorAPI

    api = AnchorAPI(check_base_url(base_url), check_key(key_from_environment()))
    status = 0
    for session_id in ids:
        try:
            ended = api.end(session_id, TAG, deadline=time.monotonic() + END_TIMEOUT)
        except AnchorError as error:
            print(error, file=sys.stderr)
            status = 1
        else:
            print(f"{printable(session_id)}: {'already over' if ended.already else 'ended'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
