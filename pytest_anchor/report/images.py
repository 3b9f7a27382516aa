"""Screenshots as a part of the page, within bounds."""

from __future__ import annotations

import os
from base64 import b64encode
from contextlib import suppress
from typing import TYPE_CHECKING

from ..registry.locks import open_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MOST_OF_ONE = 3 << 20  # bytes
MOST_OF_ALL = 20 << 20
PNG = b"\x89PNG\r\n\x1a\n"


def embedded(paths: Iterable[str], folder: Path) -> dict[str, str]:
    """Screenshots as data URLs, by their paths: those that can be read, and that there is room for.

    :param folder: which the paths are relative to.
    """
    found: dict[str, str] = {}
    room = MOST_OF_ALL
    for path in paths:
        content = b""
        with suppress(OSError, ValueError):
            content = _read(os.path.normpath(folder / path))  # as relative paths are made: the folder need not exist
        if content.startswith(PNG) and len(content) <= min(room, MOST_OF_ONE):
            room -= len(content)
            found[path] = f"data:image/png;base64,{b64encode(content).decode()}"
    return found


def _read(path: str) -> bytes:
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read(MOST_OF_ONE + 1)
