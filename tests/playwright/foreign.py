"""What the scripts share that run suites which are not this project's: where these come from, and how they end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

sys.path += [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from processes import CHECKOUT, environment

from pytest_anchor.local.chromium import find

# What `playwright install` makes on Linux, in folders with a revision in their names.
_PROGRAMS = {
    "chromium-": "chrome-linux64/chrome",
    "chromium_headless_shell-": "chrome-headless-shell-linux64/chrome-headless-shell",
}
_FFMPEG = "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())"


class Installation:
    """Packages in a virtual environment, and a Chromium for Playwright to launch: this machine's.

    :param folder: where they are, or are put. It is kept, and used again by the next run of the script.
    """

    def __init__(self, folder: Path, *packages: str) -> None:
        self.python = folder / "venv" / "bin" / "python"
        self.home = folder / "home"
        done = folder / "installed"
        if done.is_file() and done.read_text() == repr(packages):
            return
        shutil.rmtree(folder / "venv", ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        own = f"{CHECKOUT}[local,playwright]"
        pip = [self.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--quiet"]
        subprocess.run([*pip, "-e", own, "imageio-ffmpeg", *packages], check=True, env=environment())
        self._link_browsers(self.home / ".cache" / "ms-playwright")
        done.write_text(repr(packages))

    def _link_browsers(self, folder: Path) -> None:
        command = [self.python, "-m", "playwright", "install", "--dry-run", "chromium"]
        plan = subprocess.run(command, capture_output=True, text=True, check=True, env=environment()).stdout
        ffmpeg = subprocess.run([self.python, "-c", _FFMPEG], capture_output=True, text=True, check=True).stdout
        for name in map(os.path.basename, re.findall(r"Install location: +(\S+)", plan)):
            for start, program in _PROGRAMS.items():
                if name.startswith(start):
                    _link(folder / name, program, find(None))
            if name.startswith("ffmpeg-"):
                _link(folder / name, "ffmpeg-linux", ffmpeg.strip())

    def pytest(self, folder: Path, *arguments: str, **variables: str) -> dict[str, str]:
        """Run pytest in *folder*.

        :returns: the outcomes of its tests by their names.
        """
        junit = self.home / "junit.xml"
        junit.unlink(missing_ok=True)
        own = {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "PLAYWRIGHT_BROWSERS_PATH": str(self.home / ".cache" / "ms-playwright"),
        }
        with (self.home / "output.log").open("a") as log:
            log.write(f"\n$ pytest {' '.join(arguments)}\n")
            log.flush()
            subprocess.run(
                [self.python, "-m", "pytest", f"--junit-xml={junit}", *arguments],
                cwd=folder,
                env={**environment(), "PYTHONPATH": "", **own, **variables},
                stdout=log,
                stderr=log,
                check=False,
            )
        return _outcomes(junit) if junit.is_file() else {}


def _link(folder: Path, name: str, program: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(program)
    for mark in ("INSTALLATION_COMPLETE", "DEPENDENCIES_VALIDATED"):
        (folder / mark).touch()


def _outcomes(junit: Path) -> dict[str, str]:
    """How each test ended; one that fails at its teardown, too, counts as an error."""
    found: dict[str, str] = {}
    for case in ET.parse(junit).iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        name = f"{case.get('classname')}::{case.get('name')}"
        outcome = min(kinds, default="passed")
        found[name] = outcome if found.get(name, "passed") == "passed" else found[name]
    return found


def clone(repository: str, folder: Path, *paths: str) -> Path:
    """The newest state of a repository, or of these paths of it, in *folder*, unless that is there."""
    if not folder.is_dir():
        subprocess.run(["git", "clone", "--quiet", "--no-checkout", repository, folder], check=True)
        subprocess.run(["git", "checkout", "--quiet", "HEAD", "--", *(paths or ".")], cwd=folder, check=True)
    return folder


def counted(outcomes: dict[str, str]) -> str:
    """How many tests ended how."""
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(Counter(outcomes.values()).items()))


def differences(one: dict[str, str], other: dict[str, str]) -> set[str]:
    """The names of the tests that did not end alike in both runs."""
    return {name for name in {*one, *other} if one.get(name) != other.get(name)}


def only(names: set[str]) -> tuple[str, ...]:
    """The arguments of pytest for tests of these names, whatever their parameters."""
    functions = {name.rpartition("::")[2].partition("[")[0] for name in names}
    return ("-k", " or ".join(sorted(functions))) if functions else ()
