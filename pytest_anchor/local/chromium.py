"""A local Chromium: finding one, one per session with a profile of its own, and its certain end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import aiohttp

from ..settings import CHROMIUM_VARIABLE
from .cdp import Page
from .errors import ChromiumError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .config import Config

# Chromium's lock is a Unix socket in its profile, and the kernel limits such a socket's path, the final 0 included.
_SOCKET = "/pytest-anchor-local-12345678/12345678/org.chromium.Chromium.123456/SingletonSocket"
_LONGEST_TEMP = (104 if sys.platform == "darwin" else 108) - 1 - len(_SOCKET)

START_TIMEOUT = 30.0  # seconds
NAVIGATION_TIMEOUT = 10.0  # seconds; a slow initial_url does not hold up the creation for longer
_POLL = 0.01  # seconds

# Without a display every session is headless, and this one, where it is installed, starts with a fifth of the CPU.
_SHELL = "chromium-headless-shell"
_SHELL_GLOBS = ("chromium_headless_shell-*/chrome-*/*headless*shell",)
_NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "microsoft-edge-stable",
    "msedge",
)
_MAC_APPS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
_PLAYWRIGHT_GLOBS = ("chromium-*/chrome-linux*/chrome", "chromium-*/chrome-mac*/*.app/Contents/MacOS/*")
_REMEDY = f"""\
No Chromium was found. Get one with
  Debian, Ubuntu:  sudo apt-get install chromium
  Fedora:          sudo dnf install chromium
  macOS:           brew install --cask chromium
  anywhere:        python -m playwright install chromium
or name one with --chromium or {CHROMIUM_VARIABLE}."""

# Chromium reads commands from file descriptor 3, and ends when the last writer of that pipe is
# gone: the backend. So the kernel ends Chromium even when the backend is killed, and this shell,
# a parent that outlives both, then removes the profile. It is tried again because Chromium's
# helpers may still be writing.
_WRAPPER = '"$@" 3<&0 4>/dev/null </dev/null; rm -rf "$0" || { sleep 1; rm -rf "$0"; }'

_FLAGS = (
    "--remote-debugging-pipe",
    "--remote-debugging-port=0",
    # A page that comes back from there fires no load event, which Playwright's `go_back` waits for.
    "--disable-back-forward-cache",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-breakpad",
    "--disable-client-side-phishing-detection",
    "--disable-component-extensions-with-background-pages",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-domain-reliability",
    # The preloaded pages of the toolbar, which is not shown, would take a third of the CPU of a start.
    "--disable-features=Translate,MediaRouter,OptimizationHints,PreloadTopChromeWebUI,WebUIOmniboxPopup",
    "--disable-gpu",
    "--disable-quic",
    "--disable-renderer-backgrounding",
    "--disable-search-engine-choice-screen",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-default-browser-check",
    "--no-first-run",
    "--password-store=basic",
    # Without it, a bar that warns of unusual flags takes a part of the viewport.
    "--test-type",
    "--use-mock-keychain",
)


def find(option: str | None, environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> str:
    """Return the path of a Chromium: the option's, the environment's, one on PATH, an app, Playwright's.

    :raises ChromiumError: there is none, or the one that was named is none; says how to get one.
    """
    if named := option or environ.get(CHROMIUM_VARIABLE):
        path = shutil.which(named, path=environ.get("PATH"))
        if path is None:
            raise ChromiumError(f"the Chromium that was named, {named}, is no program that can be run.")
        return path
    for candidate in _candidates(environ, platform, has_display=_has_display(environ, platform)):
        path = shutil.which(candidate, path=environ.get("PATH"))
        if path:
            return path
    raise ChromiumError(_REMEDY)


def _candidates(environ: Mapping[str, str], platform: str, *, has_display: bool) -> Iterator[str]:
    on_mac = platform == "darwin"
    caches = "~/Library/Caches" if on_mac else "~/.cache"
    cache = Path(environ.get("PLAYWRIGHT_BROWSERS_PATH") or f"{caches}/ms-playwright").expanduser()
    if not has_display:
        yield _SHELL
        yield from _newest_first(cache, _SHELL_GLOBS)
    yield from _NAMES
    yield from _MAC_APPS if on_mac else ()
    yield from _newest_first(cache, _PLAYWRIGHT_GLOBS)


def _newest_first(cache: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    found = [path for pattern in patterns for path in cache.glob(pattern)]
    yield from map(str, sorted(found, key=_revision, reverse=True))


def _revision(path: Path) -> int:
    match = re.search(r"chromium\w*-(\d+)", str(path))
    return int(match[1]) if match else 0


def temp_folder(longest: int = _LONGEST_TEMP) -> Path:
    """Return the folder for profiles: the temporary folder, or ``/tmp`` where that one's path is too long.

    :param longest: how many bytes its path may have.
    :raises ChromiumError: neither will do; says what to do.
    """
    temp = tempfile.gettempdir()
    for folder in (temp, "/tmp"):  # noqa: S108 - what is made there gets a name of its own
        if len(os.fsencode(folder)) <= longest and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    raise ChromiumError(
        f"Chromium needs a temporary folder whose path has at most {longest} bytes, for its socket. "
        f"{temp} has {len(os.fsencode(temp))}, and /tmp cannot be written to: set TMPDIR to a shorter one."
    )


class Launcher:
    """Starts Chromium, keeps all profiles in one folder, and leaves neither behind.

    The folder carries a lock as long as this process lives; folders without one are what killed
    backends left, and are removed at the start of the next.
    """

    _PREFIX = "pytest-anchor-local-"

    def __init__(self, executable: str) -> None:
        self._executable = executable
        self._chromiums: set[Chromium] = set()
        self._http: aiohttp.ClientSession | None = None
        temp = temp_folder()
        for old in temp.glob(f"{self._PREFIX}*"):
            _remove_if_dead(old)
        # Named so only once it is locked: else another backend's start could take it for dead.
        fresh = Path(tempfile.mkdtemp(dir=temp, prefix="pytest-anchor-new-"))
        self._lock = os.open(fresh, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.folder = fresh.rename(temp / fresh.name.replace("pytest-anchor-new-", self._PREFIX))

    async def start(self, config: Config) -> Chromium:
        """Start a Chromium as *config* wants it, and return it when it can be driven.

        :raises ChromiumError: it did not start; says what it said.
        """
        if self._http is None:
            # Not the environment's proxies: this is loopback.
            self._http = aiohttp.ClientSession(trust_env=False)
        chromium = Chromium(self._executable, Path(tempfile.mkdtemp(dir=self.folder, prefix="")), config, self._http)
        self._chromiums.add(chromium)
        try:
            await chromium.ready(config)
        except BaseException:
            await chromium.stop()
            raise
        finally:
            self._chromiums = {each for each in self._chromiums if not each.stopped}
        return chromium

    async def close(self) -> None:
        """Kill every Chromium and remove every profile."""
        await asyncio.gather(*(chromium.stop() for chromium in self._chromiums))
        if self._http:
            await self._http.close()
        await asyncio.to_thread(_remove, self.folder)
        os.close(self._lock)


class Chromium:
    """One running Chromium. Its whole process group and its profile are its own."""

    def __init__(self, executable: str, profile: Path, config: Config, http: aiohttp.ClientSession) -> None:
        self.profile = profile
        self._executable = executable
        self.stopped = False
        self.http = http
        self._port = 0
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        command = [executable, *_FLAGS, *_flags(config), f"--user-data-dir={profile}", "about:blank"]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the user's own Chromium
                ["/bin/sh", "-c", _WRAPPER, str(profile), *command],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                # Chromium puts its lock's socket into the temporary folder, and a killed one leaves it.
                env={**os.environ, "TMPDIR": str(profile)},
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise ChromiumError(f"Chromium cannot be started: {error}.") from error
        self.url = ""

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    async def ready(self, config: Config) -> None:
        """Wait until it can be driven, has its viewport and has gone to its first page.

        :raises ChromiumError: it ended or took too long.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while not self._listening():
            if not self.alive or time.monotonic() > deadline:
                raise ChromiumError(self._failure())
            await asyncio.sleep(_POLL)
        try:
            page = await self._first_page(deadline)
            async with Page(self.http, page["webSocketDebuggerUrl"]) as first:
                await first.resize(config.width, config.height)
                if config.initial_url:
                    with suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(first.call("Page.navigate", url=config.initial_url), NAVIGATION_TIMEOUT)
        except aiohttp.ClientError as error:
            raise ChromiumError(self._failure()) from error

    def _listening(self) -> bool:
        try:
            port, path = (self.profile / "DevToolsActivePort").read_text().split("\n")
        except (OSError, ValueError):  # not there yet, or not yet whole
            return False
        self._port = int(port)
        self.url = f"ws://127.0.0.1:{port}{path}"
        return True

    def _failure(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 2000))
        said = self._log.read().decode(errors="replace").strip() or "nothing"
        return f"Chromium ({self._executable}) did not start. It said: {said}"

    async def _first_page(self, deadline: float) -> dict[str, Any]:
        while True:
            pages = await self.pages()
            if pages:
                return pages[0]
            if time.monotonic() > deadline:
                raise ChromiumError(self._failure())
            await asyncio.sleep(_POLL)

    async def pages(self) -> list[dict[str, Any]]:
        """Return its pages as Chromium describes them, the one used last first.

        :raises aiohttp.ClientError: it is gone.
        """
        async with self.http.get(f"http://127.0.0.1:{self._port}/json/list") as answer:
            targets: list[dict[str, Any]] = await answer.json()
        return [target for target in targets if target["type"] == "page"]

    async def screenshot(self) -> bytes:
        """Return the PNG of the page used last.

        :raises ChromiumError: there is no page, or it gives none.
        :raises aiohttp.ClientError: it is gone.
        """
        pages = await self.pages()
        if not pages:
            raise ChromiumError("The browser has no page open to take a screenshot of.")
        async with Page(self.http, pages[0]["webSocketDebuggerUrl"]) as page:
            return await page.screenshot()

    async def stop(self) -> None:
        """Kill it with its whole process group, and remove its profile."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._bury)

    def _bury(self) -> None:
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        self._log.close()
        _remove(self.profile)
        self.stopped = True


def _flags(config: Config) -> Iterator[str]:
    if config.headless or not _has_display(os.environ, sys.platform):
        yield "--headless=new"
    if os.geteuid() == 0 or any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        # Chromium refuses to run as root with its sandbox, and containers seldom let it make one.
        yield "--no-sandbox"
    if not config.web_security:
        yield "--disable-web-security"
    yield f"--window-size={config.width},{config.height}"


def _has_display(environ: Mapping[str, str], platform: str) -> bool:
    return platform == "darwin" or bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + 1.0
    while folder.exists():
        # Killed helpers may be writing still, which makes the last step fail.
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > deadline:
            return


def _remove_if_dead(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError:
        return
    try:
        # The temporary folder is shared: another user's are not ours to judge.
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
