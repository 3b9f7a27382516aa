"""Which folders and files on disk may be trusted: a shared folder may have been prepared by another user."""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from filelock import Timeout

from ..errors import AnchorConfigError, AnchorRegistryError
from ..settings import REGISTRY_NAME, socket_folder, worker_sockets
from .file_lock import LOCK_TIMEOUT
from .locks import JOURNAL


def check_registry(path: Path) -> bool:
    """Return whether there is a registry at *path*.

    :raises AnchorRegistryError: another user could have prepared it, or could change it.
    """
    try:
        _check_folder(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unusable(path, error) from error
    return True


def is_own_folder(path: Path) -> bool:
    """Whether *path* is a folder of this user's, and not a link to one."""
    try:
        _check_folder(path)
    except OSError:
        return False
    return True


def make_folder(path: Path, *, with_gitignore: bool = False) -> None:
    """Make *path* for this user only; refuse one that another user could have prepared or could change."""
    made = False
    with suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
        made = True
    if not made:
        _check_folder(path)
        with_gitignore = with_gitignore and path.name == REGISTRY_NAME
    ignore = path / ".gitignore"
    if with_gitignore and not ignore.exists():
        ignore.write_text("# Made by pytest-anchor.\n*\n", encoding="utf-8")


def _check_folder(path: Path) -> None:
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise OSError(errno.ENOTDIR, "it is a link or a file, not a folder", str(path))
    if info.st_uid != os.geteuid():
        raise OSError(errno.EPERM, f"it belongs to user {info.st_uid}, not to {os.geteuid()}", str(path))
    if info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX and _has_modes(path):
        raise OSError(errno.EPERM, "other users may write in it", str(path))


def _has_modes(folder: Path) -> bool:
    """Whether the file system of *folder* keeps modes: where every folder looks open to others, that means nothing."""
    probe = folder / f".modes-{os.getpid()}"
    probe.mkdir(mode=0o700)
    try:
        return not probe.lstat().st_mode & 0o022
    finally:
        probe.rmdir()


def remove_sockets(folder: Path) -> None:
    """Remove what a broker that was killed has left for the sockets of the dead run in *folder*."""
    import shutil  # few runs need it

    for name in (folder.name, worker_sockets(folder)):
        with suppress(OSError, AnchorConfigError):
            sockets = socket_folder(name)
            if sockets and is_own_folder(Path(sockets)) and not any(map(_is_served, Path(sockets).glob("*/socket"))):
                shutil.rmtree(sockets)


def _is_served(path: Path) -> bool:
    """Whether a process listens at a socket, as far as that can be told: it may have been started just now."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(0.1)
        try:
            connection.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass
        return True


def check_file(fd: int) -> os.stat_result:
    """Refuse what is not a regular file of this user's."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EPERM, f"its {JOURNAL} is not a file")
    if info.st_uid != os.geteuid():
        raise OSError(errno.EPERM, f"its {JOURNAL} belongs to user {info.st_uid}, not to {os.geteuid()}")
    return info


def unusable(folder: Path, error: Exception) -> AnchorRegistryError:
    """The error for a folder of the registry that cannot be used, with the remedy."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, Timeout):
        why = f"another process has held its lock for over {LOCK_TIMEOUT:.0f} seconds"
    return AnchorRegistryError(
        f"the session registry {str(folder)!r} cannot be used: {why}. No session is created without a record: "
        "make the folder writable, or name another one with --anchor-registry DIR."
    )
