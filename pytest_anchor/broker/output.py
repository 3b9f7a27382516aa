"""The folder for evidence, in which the next run removes what the last one made, and nothing else."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..registry.locks import hold, is_held

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_NAME = 80  # characters of a test's id in the name of its folder
MAX_FILES = 1000  # of one name in a folder
ATTEMPTS = 3
MAX_LIST = 16 << 20  # bytes

# A run's list of what it makes, a line for each file. Its lock is held while the run's broker lives.
_LIST = re.compile(r"\.pytest-anchor-[0-9a-zA-Z]{1,64}")
_ENTRY = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]*)/([a-z0-9-]+\.(?:png|mp4))")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class OutputFolder:
    """A run's part of the folder. Safe to use from several threads, and beside other runs.

    :param path: where it is; it is made if need be.
    :param run: the name of the invocation.
    """

    def __init__(self, path: str, run: str) -> None:
        self._path = Path(path)
        self._list_name = f".pytest-anchor-{run}"
        self._lock = threading.Lock()
        self._list: int | None = None  # the descriptor that holds the lock

    def clean(self) -> None:
        """Remove what runs that are over have made.

        :raises OSError: it cannot be done.
        """
        with suppress(FileNotFoundError), self._lock, self._opened() as root:
            for name in os.listdir(root):  # noqa: PTH208 - by its descriptor
                if _LIST.fullmatch(name) and name != self._list_name and not is_held(self._path / name):
                    with suppress(OSError):  # it is no list, or another run is at it
                        _remove_listed(root, name)

    def write(self, test: str, name: str, content: bytes) -> str:
        """Write a file of a test's, and return its path: see :meth:`new_file`."""
        with self.new_file(test, name) as (file, path):
            file.write(content)
        return path

    @contextmanager
    def new_file(self, test: str, name: str) -> Iterator[tuple[BinaryIO, str]]:
        """A new file of a test's, to be written, and its path; where that fails, nothing of it is left.

        :param name: with its suffix; a number is put before that.
        :raises OSError: it cannot be made.
        """
        fd, path = self._make(folder_name(test), *name.rsplit(".", 1))
        try:
            with os.fdopen(fd, "wb") as file:
                yield file, path
        except BaseException:
            with suppress(OSError):
                Path(path).unlink(missing_ok=True)
                Path(path).parent.rmdir()
            raise

    def _make(self, folder: str, stem: str, suffix: str) -> tuple[int, str]:
        if not self._path.exists():
            self._path.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                (self._path / ".gitignore").write_text("# Made by pytest-anchor.\n*\n", encoding="utf-8")
        with self._lock, self._opened() as root, _made(folder, root) as inside:
            for number in range(1, MAX_FILES):
                file = f"{stem}-{number}.{suffix}"
                with suppress(FileExistsError):
                    if _exists(file, inside):
                        continue
                    self._note(f"{folder}/{file}")
                    return os.open(file, _NEW_FILE, 0o644, dir_fd=inside), str(self._path / folder / file)
        raise OSError(errno.EEXIST, f"there are {MAX_FILES} files of that name")

    def _note(self, entry: str) -> None:
        """Add a line to the list: before the file is made, so that none is missing there."""
        path = self._path / self._list_name
        if self._list is not None and not os.path.lexists(path):  # the folder was removed
            os.close(self._list)
            self._list = None
        if self._list is None:
            self._list = hold(path)
        if self._list is None:
            raise OSError(errno.EBUSY, "another process keeps the list of what is in it")
        line = f"{entry}\n".encode()
        os.lseek(self._list, 0, os.SEEK_END)
        if os.write(self._list, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def _opened(self) -> Iterator[int]:
        # The user has named it, so it may be a link; nothing in it may.
        with _closed(os.open(self._path, _FOLDER & ~os.O_NOFOLLOW)) as root:
            yield root


@contextmanager
def _made(folder: str, root: int) -> Iterator[int]:
    """The descriptor of a folder, made if need be."""
    for _ in range(ATTEMPTS):  # another run may just remove it, as what an earlier one made
        with suppress(FileExistsError):
            os.mkdir(folder, dir_fd=root)
        with suppress(FileNotFoundError):
            fd = os.open(folder, _FOLDER, dir_fd=root)
            break
    else:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
    with _closed(fd):
        yield fd


def folder_name(test: str) -> str:
    """The name of a test's folder: readable, the same in each run, and no other test's on any file system."""
    digest = sha256(test.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", test).strip("-.")
    if len(readable) > MAX_NAME:  # the end tells a test from others of its file
        readable = readable[-MAX_NAME:].lstrip("-.")
    return f"{readable}-{digest}" if readable else digest


def _remove_listed(root: int, list_name: str) -> None:
    fd = os.open(list_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root)
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
            return
        lines = file.read(MAX_LIST).decode("ascii", "replace").splitlines()
    entries = [match.groups() for line in lines if (match := _ENTRY.fullmatch(line))]
    for folder, name in entries:
        with suppress(OSError), _closed(os.open(folder, _FOLDER, dir_fd=root)) as inside:
            os.unlink(name, dir_fd=inside)
    for folder in {folder for folder, _ in entries}:
        with suppress(OSError):  # something else is in it
            os.rmdir(folder, dir_fd=root)
    os.unlink(list_name, dir_fd=root)


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _closed(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
