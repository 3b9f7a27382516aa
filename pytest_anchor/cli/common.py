"""What the commands share: output, and arguments that are checked."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import AnchorConfigError, printable
from ..reporting.progress import write
from ..settings import (
    BASE_URL_VARIABLE,
    DEFAULT_BASE_URL,
    REGISTRY_NAME,
    check_base_url,
    check_key,
    check_run_id,
    ci_run_id,
    key_from_environment,
)

if TYPE_CHECKING:
    import argparse

    from ..api import AnchorAPI

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def print_line(text: str) -> None:
    """Write a line to standard output."""
    write(sys.stdout, f"{text}\n")


def print_error(text: object) -> None:
    """Write a line to standard error."""
    write(sys.stderr, f"{text}\n")


def api_for(arguments: argparse.Namespace) -> AnchorAPI:
    """The API that the arguments and the environment name.

    :raises AnchorConfigError: there is no usable key or base URL.
    """
    base_url = check_base_url(arguments.base_url or os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL)
    key = check_key(key_from_environment())
    from ..api import AnchorAPI

    return AnchorAPI(base_url, key)


def find_registry(given: Path | None) -> Path | None:
    """The registry that was asked for, or else the nearest one; ``None`` if there is none."""
    if given is not None:
        return given
    here = Path.cwd()
    candidates = (folder / REGISTRY_NAME for folder in (here, *here.parents))
    return next((path for path in candidates if os.path.lexists(path)), None)


def describe_registry(registry: Path | None) -> str:
    """Where the record is, for the end of a sentence."""
    if registry is None:
        return f"on record: there is no {REGISTRY_NAME} here or in a folder above"
    where = printable(str(registry))
    return f"on record in {where}" if os.path.lexists(registry) else f"on record: there is no {where}"


def read_run_id(given: object) -> str:
    """The run id that was asked for, ``""`` if none was.

    :param given: the option's value; ``True`` where it came without one.
    """
    if given is None:
        return ""
    if given is True and not ci_run_id():
        raise AnchorConfigError("this is not a run of a CI service that is known: name the run, --run-id ID")
    return ci_run_id() if given is True else check_run_id(str(given))


def check_tag(tag: str) -> str:
    """Return *tag* if the API can be asked for it.

    :raises AnchorConfigError: it cannot.
    """
    if not tag.strip() or "," in tag or not tag.isprintable():
        raise AnchorConfigError(
            f"--tag takes one tag, without commas or control characters, not {printable(repr(tag), 80)}"
        )
    return tag


def parse_duration(duration: str | None) -> float | None:
    """Return the seconds that a text such as ``10m`` means; ``None`` for ``None``.

    :raises AnchorConfigError: it means none.
    """
    if duration is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", duration)
    if match is None:
        raise AnchorConfigError(
            f"--older-than takes a duration such as 90, 30s, 10m, 1h or 2d, not {printable(repr(duration), 80)}"
        )
    return float(match[1]) * _UNITS[match[2]]
