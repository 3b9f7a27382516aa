"""Suites that others have written, on this machine and in browsers elsewhere: `python tests/playwright/public_suites.py
FOLDER [NAME…]`.

Each is run unchanged, once as its authors do, with Chromium here, and once with the switch, on a local backend whose
Chromium is in a network that cannot reach this machine's localhost, where the suites' servers are. Prints a table, and
what ends differently; ends with 1 where a test passes without the switch only. What is needed is put in FOLDER, and
kept there: packages, and clones of the repositories, unless there are some at FOLDER/clones/NAME.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1]))

from elsewhere import Elsewhere
from foreign import Installation, clone, counted, differences, only

PYTEST = ("pytest-playwright", "pytest-xdist", "pytest-timeout")
OPTIONS = ("-q", "-n", "2", "--dist", "loadfile", "--timeout", "300", "-o", "addopts=")
# A settings file of its authors' but for the database, which is PostgreSQL there.
SQLITE = """
from project.settings import *

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
"""


class Suite(NamedTuple):
    """A suite, or the part of it that needs a browser and runs within minutes.

    :param packages: what it needs beside pytest-playwright.
    :param tests: arguments of pytest.
    :param repository: where it is, if it does not come with its package.
    :param paths: of the repository, what is needed.
    :param folder: where pytest runs, of the clone. Without a repository, it is the folder of the packages.
    :param files: what is added there.
    :param modes: of the switch; ``worker`` only where fixtures of its own are session-scoped.
    :param expected: what fails elsewhere only, and why.
    """

    packages: tuple[str, ...]
    tests: tuple[str, ...]
    repository: str = ""
    paths: tuple[str, ...] = (".",)
    folder: str = "."
    files: tuple[tuple[str, str], ...] = ()
    modes: tuple[str, ...] = ("worker",)
    expected: tuple[tuple[str, str], ...] = ()


SUITES = {
    # live_server of pytest-django: forms, navigation, an accessibility checker
    "django": Suite(
        ("pytest-django", "axe-playwright-python", "django", "django-crispy-forms", "crispy-bootstrap4", "whitenoise"),
        ("--ds", "sqlite_settings", "src/tests/local/test_playwright.py"),
        repository="https://github.com/Azure-Samples/azure-django-postgres-flexible-appservice",
        files=(("src/sqlite_settings.py", SQLITE),),
        modes=("worker", "test"),
    ),
    # a server for each test module; everything goes by WebSocket; one page for all tests
    "py-shiny": Suite(
        ("shiny[theme]", "pytest-asyncio", "pytest-rerunfailures", "pandas", "matplotlib", "psutil", "faicons"),
        tuple(f"tests/playwright/shiny/{name}" for name in ("inputs", "session", "server", "shiny-express")),
        repository="https://github.com/posit-dev/py-shiny",
        paths=("tests", "examples", "shiny/api-examples", "pytest.ini"),
    ),
    # servers in threads of the test process; WebSocket, downloads, uploads; those with React load it from the internet
    "panel": Suite(
        ("panel", "pytest-asyncio", "pytest-rerunfailures", "psutil"),
        (
            *("--ui", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "-k", "not React"),
            *(f"panel/tests/ui/{name}" for name in ("io", "test_custom.py")),
            *(f"panel/tests/ui/layout/test_{name}.py" for name in ("accordion", "feed")),
            *(f"panel/tests/ui/widgets/test_{name}.py" for name in ("button", "input")),
        ),
    ),
    # a server in a process for each test module; WebSocket, reconnection, frames, static files
    "streamlit": Suite(
        ("streamlit==1.40", "pixelmatch", "pytest-rerunfailures", "requests", "pillow", "numpy<2"),
        tuple(
            f"{name}_test.py"
            for name in (
                *("app_hotkeys", "config_static_serving", "forward_msg_cache", "lazy_loaded_modules"),
                *("st_cache_resource", "st_fragment_basics", "st_fragments_nested", "st_query_params", "st_rerun"),
                *("st_session_state", "st_set_page_config", "st_stop", "websocket_reconnects", "widget_state"),
            )
        ),
        repository="https://github.com/streamlit/streamlit",
        paths=("e2e_playwright/*.py", "e2e_playwright/pytest.ini", "e2e_playwright/static"),
        folder="e2e_playwright",
        modes=("worker", "test"),
        expected=(
            (
                "test_retain_captured_pictures_when_websocket_connection_drops_and_reconnects",
                "Chromium's flags for a camera that is not there have no meaning for a session",
            ),
        ),
    ),
}


def compare(name: str, suite: Suite, here: Path) -> int:
    """Run a suite in each way, and return how many tests pass without the switch only."""
    installation = Installation(here / name, *PYTEST, *suite.packages)
    if suite.repository:
        folder = clone(suite.repository, here / "clones" / name, *suite.paths) / suite.folder
    else:
        folder = next((here / name / "venv" / "lib").glob("python*/site-packages"))
    for path, text in suite.files:
        (folder / path).write_text(text)
    worse = 0
    with closing(Elsewhere()) as backend:

        def run(mode: str, names: set[str]) -> dict[str, str]:
            switch = ("-p", "pytest_anchor", "--anchor-playwright", mode, "--anchor-forward", "on")
            return installation.pytest(
                folder,
                *(*OPTIONS, *(switch if mode else ()), *suite.tests, *only(names)),
                ANCHORBROWSER_BASE_URL=backend.url,
                ANCHORBROWSER_API_KEY=backend.key,
            )

        without = run("", set())
        print(f"| {name} | here | {counted(without)} |", flush=True)
        for mode in suite.modes:
            switched = run(mode, set())
            print(f"| | elsewhere, {mode} | {counted(switched)} |", flush=True)
            if differing := differences(without, switched):  # both once more: many of these tests depend on time
                without, switched = without | run("", differing), switched | run(mode, differing)
            for test in sorted(differences(without, switched)):
                reason = next((why for one, why in suite.expected if f"::{one}[" in test), "")
                worse += without.get(test) == "passed" and not reason
                print(f"  {test}: {without.get(test)} here, {switched.get(test)} elsewhere. {reason}", flush=True)
        if alive := len(backend.alive):
            print(f"  sessions that outlive their runs: {alive}", flush=True)
    return worse + alive


def main(folder: str, *names: str) -> int:
    """Run all suites, or those that are named."""
    return sum([compare(name, SUITES[name], Path(folder).absolute()) for name in names or SUITES])


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
