"""What the enabled plugin costs a suite that never asks for a session."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from typing import TYPE_CHECKING

from measure import ROOT, Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 40
WAYS = {"without": ("-p", "no:pytest_anchor"), "installed": (), "by `-p`": ("-p", "pytest_anchor")}


def figures() -> Iterator[Figure]:
    """A whole process with the plugin against the same command without it."""
    with tempfile.TemporaryDirectory() as folder:
        test = Path(folder, "test_nothing.py")
        test.write_text("def test_nothing(): pass\n", encoding="utf-8")
        # Byte code is cached as on a user's machine, whatever this one is set to.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPATH"] = str(ROOT)

        def run(options: tuple[str, ...]) -> float:
            """The process's own CPU seconds: what other processes take away here is more than what is measured."""
            command = [sys.executable, "-m", "pytest", "-q", *options, str(test)]
            before = sum(getrusage(RUSAGE_CHILDREN)[:2])
            subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, cwd=folder)
            return sum(getrusage(RUSAGE_CHILDREN)[:2]) - before

        assert entry_points(group="pytest11", name="pytest_anchor"), "install the plugin, or pytest does not load it"
        for options in WAYS.values():
            run(options)
        rounds = [{way: run(options) for way, options in WAYS.items()} for _ in range(ROUNDS)]
        script = (
            "import sys, pytest; pytest.main(['-q', '-p', 'pytest_anchor', sys.argv[1]]);"
            "sys.exit(any(name in sys.modules for name in ('requests', 'filelock')))"
        )
        check = [sys.executable, "-c", script, str(test)]
        imports = subprocess.run(check, env=env, stdout=subprocess.DEVNULL, cwd=folder, check=False)
    for way in ("installed", "by `-p`"):
        yield Figure(
            f"enabled ({way}) and unused, against `-p no:pytest_anchor`, CPU",
            f"{median(one[way] - one['without'] for one in rounds) * 1000:+.1f} ms",
            "under 5 ms",
            f"{median(one[way] for one in rounds) * 1000:.0f} ms against "
            f"{median(one['without'] for one in rounds) * 1000:.0f} ms",
        )
    yield Figure("modules requests and filelock imported", "yes" if imports.returncode else "no", "no", "")
