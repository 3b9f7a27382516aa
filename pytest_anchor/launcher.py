"""How a test process starts the run's broker, and the kernel's calls that it takes."""

from __future__ import annotations

import json
import os
import sys
from _thread import get_ident
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import AnchorError
from .settings import KEY_VARIABLES, socket_identity

try:
    import _socket
    import fcntl
    import posix
    from _socket import AF_UNIX, SHUT_RDWR, SOCK_STREAM, socket
except ImportError:  # Windows, where no session is created
    posix = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from .settings import Settings

BACKLOG = 1024  # connections that wait until the broker takes them

_PATH_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC")
_LEFT_OUT = (*KEY_VARIABLES, "PYTEST_CURRENT_TEST", "PYTHONINSPECT", "PYTHONSTARTUP")
# A json.py of the suite's is not what the broker is to import: its own path comes first, and PYTHONPATH's and the test
# process's behind it. This very package is what the test process has, though another version may be installed.
_START = """
import os, sys
last = {"", *os.environ.get("PYTHONPATH", "").split(os.pathsep)}
sys.path.sort(key=last.__contains__)
home, *paths = sys.stdin.buffer.readline()[:-1].decode("utf-8", "surrogateescape").split(chr(0))
sys.path[:] = filter(None, [*sys.path, *paths])
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("pytest_anchor", home + "/__init__.py", submodule_search_locations=[home])
sys.modules["pytest_anchor"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
from pytest_anchor.broker.__main__ import main
main()
"""
_HOME = os.path.dirname(os.path.abspath(__file__))


_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)


class System:
    """The kernel's calls. As attributes of a class, they are out of pyfakefs's reach."""

    is_complete = posix is not None
    if is_complete:
        chmod, close, getpid, mkdir, open, pipe = (
            posix.chmod,
            posix.close,
            posix.getpid,
            posix.mkdir,
            posix.open,
            posix.pipe,
        )
        read, rename, rmdir, spawn, stat, unlink = (
            posix.read,
            posix.rename,
            posix.rmdir,
            posix.posix_spawn,
            posix.lstat,
            posix.unlink,
        )
        fstat, getuid, waitpid, write = posix.fstat, posix.getuid, posix.waitpid, posix.write
        duplicate, times = fcntl.fcntl, posix.times
        socket = socket
        both_ways = SHUT_RDWR
        # Where a test has SIGPIPE end its process, writing to a broker that is gone must not; macOS has no such flag.
        no_signal = getattr(_socket, "MSG_NOSIGNAL", 0)

        @classmethod
        def unix_socket(cls) -> Any:
            """A socket of this machine's only."""
            return cls.socket(AF_UNIX, SOCK_STREAM)

    encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
    decode = json.JSONDecoder().decode


getpid = System.getpid if posix is not None else os.getpid


def elapsed() -> float:
    """Seconds since some moment, in steps of 10 ms, by a clock that freezegun and time-machine do not know."""
    return float(System.times().elapsed) if System.is_complete else 0.0


class Launcher:
    """Starts brokers of a run.

    What that takes is read when this is made: the interpreter, its path and the environment may be anything by the
    time that a test asks for a session.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.executable = sys.executable
        self._paths = list(map(os.path.abspath, filter(None, sys.path)))
        self._environment = _environment()

    def launch(self, generation: int, key: str) -> None:
        """Start the broker of a generation, unless another process is faster.

        Its listening socket is made here, in a folder that then gets its name, which only one process can give it. So
        every process can connect at once, and a refused connection means that the broker is dead.
        """
        __tracebackhide__ = True
        folder = self.settings.socket_folder
        try:
            mine = f"{folder}/{System.getpid()}.{get_ident():x}"
            listener = System.unix_socket()
            try:
                _make_folder(folder)
                _make_folder(mine)
                _remove(f"{mine}/socket")  # of an attempt that was interrupted
                listener.bind(f"{mine}/socket")
                System.chmod(f"{mine}/socket", 0o600)
                listener.listen(BACKLOG)
                identity = socket_identity(System.stat(f"{mine}/socket"))
                try:
                    System.rename(mine, f"{folder}/{generation}")
                except OSError:  # another process has given the name
                    System.unlink(f"{mine}/socket")
                    System.rmdir(mine)
                    return
                self._spawn(listener, generation, key, identity)
            finally:
                listener.close()
        except FileNotFoundError:  # a broker that was just leaving has removed the folder
            return
        except OSError as error:
            raise start_failure(error.strerror or str(error)) from None

    def _spawn(self, listener: Any, generation: int, key: str, identity: list[int]) -> None:
        settings = {**self.settings._asdict(), "folder": str(self.settings.folder), "api_key": str(key)}
        told = {"settings": settings, "pid": System.getpid(), "generation": generation, "identity": identity}
        log = f"{self.settings.socket_folder}/log"
        System.close(System.open(log, _LOG_FLAGS, 0o600))
        System.chmod(log, 0o600)
        read, write = System.pipe()
        opened = [read]
        try:
            try:
                # Above what is overwritten below.
                for fd in (read, listener.fileno()):
                    opened.append(System.duplicate(fd, fcntl.F_DUPFD_CLOEXEC, 10))  # noqa: PERF401 - closed if one fails
                actions = [
                    (posix.POSIX_SPAWN_DUP2, opened[1], 0),
                    (posix.POSIX_SPAWN_OPEN, 1, log, _LOG_FLAGS, 0o600),
                    (posix.POSIX_SPAWN_DUP2, 1, 2),
                    (posix.POSIX_SPAWN_DUP2, opened[2], 3),
                ]
                command = [self.executable, "-W", "ignore", "-c", _START, str(self.settings.folder)]
                try:
                    pid = System.spawn(self.executable, command, self._environment, file_actions=actions, setsigmask=[])
                except OSError as error:
                    raise start_failure(f"{self.executable}: {error.strerror}") from None
            finally:
                for fd in opened:
                    System.close(fd)
            paths = "\0".join([_HOME, *(path for path in self._paths if "\n" not in path)])
            message = memoryview(
                paths.encode("utf-8", "surrogateescape") + b"\n" + System.encode(told).encode() + b"\n"
            )
            while message:
                message = message[System.write(write, message) :]
        except BrokenPipeError:  # it did not come up: the process that connects gets the reason
            pass
        finally:
            System.close(write)
        with suppress(ChildProcessError):
            System.waitpid(pid, 0)  # it forks at once, so that no test meets a child that it does not know


def can_be_sent(value: Any) -> bool:
    """Whether JSON has a form for *value*."""
    try:
        System.encode(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _make_folder(path: str) -> None:
    try:
        System.mkdir(path, 0o700)
    except FileExistsError:
        check_folder(path)
    else:
        System.chmod(path, 0o700)  # whatever a test has made of the umask


def check_folder(path: str) -> None:
    """Refuse a folder, if there is one, that another user could have prepared."""
    try:
        info = System.stat(path)
    except FileNotFoundError:
        return
    if info.st_uid != System.getuid() or info.st_mode & 0o077 or info.st_mode & 0o170000 != 0o040000:
        raise AnchorError(f"{path} was made by another user: it is not used") from None


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        System.unlink(path)


def exists(path: str) -> bool:
    """Whether there is anything at *path*."""
    try:
        System.stat(path)
    except OSError:
        return False
    return True


def _environment() -> dict[str, str]:
    """The environment of this process without the keys, nor what is only about this very process."""
    kept = {
        name: value for name, value in os.environ.items() if name not in _LEFT_OUT and not name.startswith("COVERAGE_")
    }
    for name in _PATH_VARIABLES:
        if kept.get(name):
            kept[name] = os.path.abspath(kept[name])
    if paths := kept.get("PYTHONPATH"):
        kept["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, paths.split(os.pathsep))))
    return kept


def start_failure(why: str) -> AnchorError:
    """The error for a broker that did not come up."""
    return AnchorError(
        f"the broker, the process that keeps this run's sessions, did not start: {why}. "
        "No session is created without it; the next request tries again."
    )
