"""pytest-playwright's own tests, without the switch and with it: `python tests/playwright/upstream.py FOLDER`.

FOLDER, where what this needs is put, is kept for the next time. The tests come from a clone of REPOSITORY, which a
second argument replaces: the packages come without them. Prints what fails in one way only, and ends with 1 where
it is with the switch, and EXPECTED does not name it.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from elsewhere import Elsewhere
from foreign import Installation, clone, counted, differences, only

REPOSITORY = "https://github.com/microsoft/playwright-pytest"
PACKAGES = (
    "pytest-playwright",
    "pytest-playwright-asyncio",
    "pytest-asyncio",
    "pytest-xdist",
    "pytest-timeout",
    "Django",
)
SUITES = ("test_sync", "test_asyncio")
MODES = ("worker", "test")
# What fails with the switch only, and why.
EXPECTED = {
    "test_launch_persistent_context_session": "is refused: it would start a Chromium on the test machine",
    "test_launch_persistent_context_function": "is refused: it would start a Chromium on the test machine",
    "test_invalid_browser_channel": "a channel has no meaning, so a wrong one does no harm",
}
EXPECTED_PER_TEST = {
    "test_context_page_on_session_level": "a context of the session's scope, where each test has a browser of its own",
}
# Their tests run pytest in processes of their own: this is a plugin of the outer pytest that switches those.
PLUGIN = """
import os
import pytest

run = pytest.Pytester.runpytest_subprocess
switch = os.environ["SWITCH"].split()
pytest.Pytester.runpytest_subprocess = lambda self, *args, **options: run(self, *switch, *args, **options)
"""
OPTIONS = (
    *("-q", "--runpytest", "subprocess", "--timeout", "300", "-o", "addopts=", "-n", "2"),
    *("-p", "pytester", "-p", "switching", "-p", "no:playwright", "-p", "no:playwright-asyncio", "-p", "no:asyncio"),
)


def main(folder: str, repository: str = REPOSITORY) -> int:
    """Run them all, and return how many tests differ that should not."""
    here = Path(folder).absolute()
    installation = Installation(here, *PACKAGES)
    checkout = clone(repository, here / "tests")
    surprises = 0
    with tempfile.TemporaryDirectory() as plugins, closing(Elsewhere(isolated=False)) as backend:
        Path(plugins, "switching.py").write_text(PLUGIN)

        def run(suite: str, mode: str, names: set[str]) -> dict[str, str]:
            found = installation.pytest(
                checkout,
                *(*OPTIONS, *only(names), f"tests/{suite}.py"),
                SWITCH=f"--anchor-playwright {mode}",
                PYTHONPATH=f"{plugins}:{checkout}",
                HOME=str(installation.home),
                ANCHORBROWSER_BASE_URL=backend.url,
                ANCHORBROWSER_API_KEY=backend.key,
            )
            return {name.rpartition("::")[2]: outcome for name, outcome in found.items()}

        for suite in SUITES:
            without = run(suite, "off", set())
            print(f"{suite}: {counted(without)}", flush=True)
            for mode in MODES:
                switched = run(suite, mode, set())
                if differing := differences(without, switched):  # once more: some of these tests depend on time
                    switched |= run(suite, mode, differing)
                print(f"{suite} with --anchor-playwright {mode}: {counted(switched)}", flush=True)
                expected = EXPECTED | (EXPECTED_PER_TEST if mode == "test" else {})
                for name in sorted(differences(without, switched)):
                    is_worse = without.get(name) == "passed"
                    surprises += is_worse and name not in expected
                    reason = expected.get(name, "NOT EXPECTED") if is_worse else "better"
                    print(f"  {name} {switched.get(name)}, else {without.get(name)}: {reason}", flush=True)
        if alive := len(backend.alive):
            print(f"sessions that outlive their runs: {alive}", flush=True)
    return surprises + alive


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
