"""The local backend, which writes down when it answered what: `python logged.py LOG [OPTION…]`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from pytest_anchor.local import app, cli, serve


class _Api(app.Api):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.app.on_response_prepare.append(_write)


async def _write(request: web.Request, response: web.StreamResponse) -> None:
    log.write(f"{time.time():.6f} {request.method} {request.path} {response.status}\n")
    log.flush()


if __name__ == "__main__":
    with Path(sys.argv[1]).open("a", encoding="utf-8") as log:
        serve.Api = _Api  # type: ignore[assignment,attr-defined]
        sys.exit(cli.main(sys.argv[2:]))
