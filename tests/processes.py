"""Python processes that tests start, read under a deadline, and what the kernel tells of them."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

CHECKOUT = Path(__file__).parent.parent
PATIENCE = 30.0  # seconds for what another process prints, far above what it takes on a busy machine

# What steers Python, pytest or this plugin. None of it is taken over from the machine that the tests run on: with
# PYTHONUNBUFFERED, for one, a process that forgets to flush what it prints would be waited for in vain elsewhere only.
_STEERING = ("PYTHON", "PYTEST_", "ANCHOR", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "CI", "COLUMNS", "LINES")


def is_steering(name: str) -> bool:
    """Whether an environment variable changes what Python, pytest, this plugin or an HTTP client does."""
    return name.startswith(_STEERING) or name.lower().endswith("_proxy")


def forget_the_machine(ci: Iterable[str]) -> None:
    """Take out of this process's environment what would steer the tests and what they start, and the *ci* variables."""
    steering = {name for name in os.environ if is_steering(name)} | set(ci)
    for name in steering:
        if not name.startswith("PYTEST_XDIST_"):  # by which pytest-xdist's workers know what they are
            os.environ.pop(name, None)


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what would steer a child, and with the checkout on ``sys.path``."""
    kept = {name: value for name, value in os.environ.items() if not is_steering(name)}
    return {**kept, "PYTHONPATH": str(CHECKOUT), **more}


def reset_signals() -> None:
    """In a child: heed what ends a process, which `nohup` or a shell's background job may have it ignore."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def within(seconds: float, work: Callable[[], T]) -> T:
    """What *work* returns or raises, which must not take longer."""
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised again in the test's thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"it hangs for more than {seconds} seconds"
    if errors:
        raise errors[0]
    return answers[0]


def read_line(process: subprocess.Popen[str], seconds: float = PATIENCE) -> str:
    """The next line that a process prints, ``""`` at the end of its output."""
    return _read(process, process.stdout.readline, seconds)


def read_all(process: subprocess.Popen[str], stream: IO[str], seconds: float = PATIENCE) -> str:
    """All that a process still writes to *stream*, one of its own."""
    return _read(process, stream.read, seconds)


def _read(process: subprocess.Popen[str], read: Callable[[], str], seconds: float) -> str:
    texts: list[str] = []
    reader = threading.Thread(target=lambda: texts.append(read()), daemon=True)
    reader.start()
    reader.join(seconds)
    if reader.is_alive():
        process.kill()  # which ends its output, so that the reader returns with what there is of it
        reader.join(5.0)
        raise AssertionError(f"in {seconds:g} seconds {process.args} printed only {''.join(texts)!r}")
    return texts[0]


@contextmanager
def script(code: str, *arguments: object, **env: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process with the checkout on its path, which is killed at the end if it still runs."""
    # Not `environment()`: a test may have set a key for it.
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def status(pid: int) -> dict[str, str]:
    """What /proc says of a process, nothing if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def stop(pid: int) -> None:
    """Stop a process, and wait until none of its threads runs: the signal alone takes a moment."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + PATIENCE
    runs = True
    while runs:
        assert time.monotonic() < deadline, f"process {pid} does not stop"
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread ends just now
            tasks = Path(f"/proc/{pid}/task").iterdir()
            runs = any("\nState:\tT" not in (task / "status").read_text() for task in tasks)
        time.sleep(0.001)


def kill(pid: int) -> None:
    """Kill a process, and wait until its last thread is gone, and with it its connections and locks."""
    fd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([fd], [], [], PATIENCE)[0], f"process {pid} does not die"
    finally:
        os.close(fd)


def is_alive(pid: int) -> bool:
    """Whether the process runs: a zombie does not."""
    return status(pid).get("State", "X")[0] not in "XZ"


def children(pid: int) -> list[int]:
    """The children of a process, zombies included."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that is over by now
            found += map(int, (task / "children").read_text().split())
    return found


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file grows beyond *size* bytes; neither does one that pytest writes its own output to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # Python ignores the signal that comes with it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))
