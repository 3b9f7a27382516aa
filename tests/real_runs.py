"""Real pytest processes that use a scripted API, and what must hold after every one of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fault_server import KEY, FaultServer

CHECKOUT = Path(__file__).parent.parent
DEADLINE = 60.0  # seconds for one run, far above what it takes

# What the run under test must not inherit from the run that tests it.
_OURS = ("PYTEST_", "ANCHOR", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "CI", "COLUMNS")


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what would steer pytest, and with the checkout on ``sys.path``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, "PYTHONPATH": str(CHECKOUT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **more}


@dataclass
class Run:
    """A run that is over."""

    status: int
    out: str
    err: str
    alive: list[str]  # sessions of the run that the server still runs
    recorded: bool  # whether the registry holds a run's folder

    @property
    def outcomes(self) -> dict[str, int]:
        """How many tests passed, failed and so on, by pytest's last line."""
        line = self.out.rstrip().rpartition("\n")[2]
        return {name.rstrip("s"): int(number) for number, name in re.findall(r"(\d+) ([a-z]+)", line)}

    @property
    def section(self) -> str:
        """The text of the terminal's anchor section, ``""`` if there is none."""
        found = re.search(r"^=+ anchor =+\n(.*?)(?=^=+ |\Z)", self.out, re.MULTILINE | re.DOTALL)
        return found[1] if found else ""


class Suite:
    """A folder of tests and the server that its runs use, on which somebody else has sessions, too."""

    def __init__(self, folder: Path, server: FaultServer) -> None:
        self.folder = folder
        self.server = server
        self.registry = folder / ".pytest_anchor"
        run, nonce = "0123456789abcdef", "fedcba9876543210-0123456789abcdef"
        self.strangers = [
            server.add(),
            server.add("pytest-anchor"),
            server.add("pytest-anchor", f"pytest-anchor:run={run}", f"pytest-anchor:new={nonce}"),
        ]
        (folder / "pytest.ini").write_text("[pytest]\n")

    def write(self, test: str, name: str = "test_it.py") -> None:
        (self.folder / name).write_text(test)

    @property
    def alive(self) -> list[str]:
        """Sessions that the suite's runs created and the server still runs."""
        return [one for one in self.server.alive if one not in self.strangers]

    def start(self, *args: str, workers: int = 0, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start pytest, as the first of a process group of its own."""
        xdist = ["-p", "xdist", "-n", str(workers)] if workers else []
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "pytest_anchor", "-W", "error", *xdist, *args],
            cwd=self.folder,
            env=environment(**self.server.env) if env is None else env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> Run:
        """Wait for the end of a run and check what no run may ever do."""
        try:
            out, err = process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"the run did not end in {DEADLINE} seconds:\n{out}\n{err}") from None
        print(out, err, sep="\n")  # pytest shows it if the test fails
        recorded = self.registry.is_dir() and any(one.is_dir() for one in self.registry.iterdir())
        run = Run(process.returncode, out, err, self.alive, recorded)
        assert set(self.strangers) <= set(self.server.alive), "a session of somebody else was ended"
        assert self.server.count("DELETE", "/v1/sessions/all") == 0
        self.assert_key_nowhere(run)
        return run

    def run(self, *args: str, workers: int = 0, env: dict[str, str] | None = None) -> Run:
        return self.finish(self.start(*args, workers=workers, env=env))

    def assert_key_nowhere(self, run: Run) -> None:
        assert KEY not in run.out
        assert KEY not in run.err
        for file in self.folder.rglob("*"):
            assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
