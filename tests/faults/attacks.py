"""What attacks on the plugin share: odd files, dead runs, and what must hold afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pytest_anchor.registry.journal import Run

T = TypeVar("T")

NOBODY = 65534
ROOT = os.geteuid() == 0
SLACK = 2.0  # seconds that something may take beyond its budget on a busy machine
SECRET = "SECRET"  # a part of the key that nothing else contains: what is cut off in the middle must not show it
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\x00\x7f"


def assert_plain(text: str) -> None:
    """Check that a terminal shows *text*, and does nothing else."""
    assert not {char for char in text if not char.isprintable()} - {"\n"}


def a_run(folder: Path, name: str) -> Run:
    run = Run(folder / ".pytest_anchor" / name)
    run.join()
    return run


def a_dead_run(folder: Path, name: str) -> Run:
    run = a_run(folder, name)
    run.leave()
    return run


# What may lie in the place of a file, and must be neither followed nor waited for.


def victim(path: Path) -> Path:
    """A file beside the registry that a link may lead to."""
    return path.parent.parent.parent / "victim"


def link(path: Path) -> None:
    victim(path).write_text("precious")
    path.symlink_to(victim(path))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def junk(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00\x80" * 100)


def for_everybody(path: Path) -> None:
    path.touch()
    path.chmod(0o666)


def somebody_elses(path: Path) -> None:
    path.touch()
    if ROOT:
        os.chown(path, NOBODY, NOBODY)


def put_in_place(put: Callable[[Path], None], path: Path) -> None:
    path.unlink(missing_ok=True)
    put(path)


def assert_not_followed(path: Path) -> None:
    assert not victim(path).exists() or victim(path).read_text() == "precious"
