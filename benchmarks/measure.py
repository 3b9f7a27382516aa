"""What the benchmarks share: figures that are ratios, each measured side by side in one run."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pytest_anchor.client import Client
from pytest_anchor.plugin.options import OPTIONS
from pytest_anchor.settings import Settings, socket_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path(__file__).parents[1]
_IN_A_SECOND = {"s": 1, "ms": 1e3, "µs": 1e6}


class Figure(NamedTuple):
    """One row of the table."""

    name: str
    value: str
    aim: str
    detail: str


def ratio(name: str, measured: float, against: float, aim: str, unit: str = "s", digits: int = 2) -> Figure:
    """One time as a multiple of another.

    :param measured: in seconds, as is *against*.
    :param unit: that both are shown in, with so many *digits*: ``s``, ``ms`` or ``µs``.
    """
    shown = (f"{took * _IN_A_SECOND[unit]:.{digits}f} {unit}" for took in (measured, against))
    return Figure(name, f"{measured / against:.2f}", aim, " against ".join(shown))


class Answer(NamedTuple):
    """What the backend answered; the moment in seconds since the epoch."""

    moment: float
    method: str
    path: str
    status: int


def seconds(work: Callable[[], object]) -> float:
    """How long *work* takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(
    a: Callable[[], object],
    b: Callable[[], object],
    rounds: int,
    of: Callable[[Iterable[float]], float] = statistics.median,
) -> tuple[float, float]:
    """The median seconds of *a* and of *b*, or what *of* makes of them.

    They run in turn, so that a machine's drift meets both.
    """
    a(), b()
    times = [(seconds(a), seconds(b)) for _ in range(rounds)]
    return of(t for t, _ in times), of(t for _, t in times)


@contextmanager
def local_server(*options: str, log: Path | None = None, browsers: bool = False) -> Iterator[dict[str, str]]:
    """A local backend in its own process; yields the environment that it names.

    :param log: where it writes down what it answers; see :func:`answers`.
    :param browsers: whether its sessions have a Chromium.
    """
    local = ["-m", "pytest_anchor", "local"] if log is None else [str(ROOT / "benchmarks" / "logged.py"), str(log)]
    process = subprocess.Popen(
        [sys.executable, *local, *([] if browsers else ["--browserless"]), *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline().strip().partition("=") for _ in range(2)]
        # Without it, the runs would go to the real API.
        assert [name for name, _, _ in lines] == ["ANCHORBROWSER_BASE_URL", "ANCHORBROWSER_API_KEY"], lines
        yield {name: value for name, _, value in lines}
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def client_for(env: dict[str, str], folder: Path, *, reaper: bool = False) -> Client:
    """A test process's client of a run whose record is in *folder*, for the API that *env* names."""
    defaults = {
        option.setting or name: option.check(name, option.default)
        for name, option in OPTIONS.items()
        if option.default or name in ("chromium", "budget", "shared_limits")
    }
    told = {
        "run_id": "bench",
        "base_url": env["ANCHORBROWSER_BASE_URL"],
        "api_key": env["ANCHORBROWSER_API_KEY"],
        "reaper": reaper,
        "socket_folder": socket_folder(f"{folder.name}-{os.urandom(8).hex()}"),
        "main_pid": os.getpid(),
    }
    return Client(Settings(**{**defaults, **told}, folder=folder, owner="main", local=False))


def answers(log: Path, method: str) -> list[Answer]:
    """What the backend has answered to *method*, in that order."""
    rows = [line.split(" ") for line in log.read_text(encoding="utf-8").splitlines()]
    return [Answer(float(moment), verb, path, int(status)) for moment, verb, path, status in rows if verb == method]


def paced(name: str, posts: list[Answer], creations: int, limit: float) -> Iterator[Figure]:
    """How close *creations*, all of which have succeeded, came to the time that the plan itself imposes.

    :param limit: that time, in seconds.
    """
    created = [post.moment for post in posts if post.status == 200]
    assert len(created) == creations, f"{len(created)} of {creations} were created"
    took = created[-1] - posts[0].moment
    yield ratio(f"{name}: first to last creation, against the limit", took, limit, "1.2 or less")
    yield Figure(f"{name}: answers of 429", str(sum(post.status == 429 for post in posts)), "fewer than 12", "")


def start_pytest(folder: Path, env: dict[str, str], *options: str) -> subprocess.Popen[str]:
    """Start pytest in *folder*, with the plugin, against the backend that *env* names.

    Byte code is cached as on a user's machine, whatever this one is set to.
    """
    everything = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | env
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "pytest_anchor", *options],
        cwd=folder,
        env={**everything, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def outcome(run: subprocess.Popen[str], status: int = 0) -> tuple[float, str]:
    """Wait for a run that was started just now; return its seconds and what it printed.

    :raises RuntimeError: its exit status is not *status*.
    """
    start = time.perf_counter()
    out, _ = run.communicate()
    if run.returncode != status:
        raise RuntimeError(f"pytest ended with {run.returncode}:\n{out}")
    return time.perf_counter() - start, out
