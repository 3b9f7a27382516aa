"""pytest-playwright's own tests, without the switch and with it: `python tests/playwright/upstream.py CHECKOUT`.

CHECKOUT is a clone of https://github.com/microsoft/playwright-pytest, whose releases come without their tests. Without
the switch, they need the browsers of `playwright install`. Prints what fails in one way only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SUITES = ("tests/test_sync.py", "tests/test_asyncio.py")
MODES = ("off", "worker", "test")
# Their tests run pytest in processes of their own: this is a plugin of the outer pytest that switches those.
PLUGIN = """
import os
import pytest

run = pytest.Pytester.runpytest_subprocess
switch = os.environ["SWITCH"].split()
pytest.Pytester.runpytest_subprocess = lambda self, *args, **options: run(self, *switch, *args, **options)
"""
OPTIONS = ("-q", "--runpytest", "subprocess", "--timeout", "300", "-o", "addopts=", "-p", "pytester", "-p", "switching")
OFF = ("-p", "no:playwright", "-p", "no:playwright-asyncio", "-p", "no:asyncio")


def failures(checkout: Path, suite: str, mode: str, plugins: str) -> set[str]:
    switch = "" if mode == "off" else f"--anchor-local --anchor-playwright {mode}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, *OFF, suite],
        cwd=checkout,
        env={**os.environ, "SWITCH": switch, "PYTHONPATH": f"{plugins}{os.pathsep}{checkout}"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(f"{suite}, {mode}: {done.stdout.rstrip().rpartition(chr(10))[2]}", flush=True)
    return set(re.findall(r"^FAILED (tests/\S+)", done.stdout, re.MULTILINE))


def main() -> None:
    checkout = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as plugins:
        Path(plugins, "switching.py").write_text(PLUGIN)
        for suite in SUITES:
            before = failures(checkout, suite, "off", plugins)
            for mode in MODES[1:]:
                after = failures(checkout, suite, mode, plugins)
                for name in sorted(after ^ before):
                    print(f"  {'fails' if name in after else 'passes'} with {mode} only: {name}", flush=True)


if __name__ == "__main__":
    main()
