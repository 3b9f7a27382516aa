"""What the enabled plugin costs a suite that never asks for a session."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from typing import TYPE_CHECKING

from measure import ROOT, Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 30
WAYS = {"without": (), "an empty plugin": ("-p", "empty"), "by `-p`": ("-p", "pytest_anchor")}
BYTECODE = {"with bytecode": {}, "without bytecode": {"PYTHONDONTWRITEBYTECODE": "1"}}


def figures() -> Iterator[Figure]:
    """A whole process with the plugin against the same command without it, and without any other plugin."""
    with tempfile.TemporaryDirectory() as folder:
        test = Path(folder, "test_nothing.py")
        test.write_text("def test_nothing(): pass\n", encoding="utf-8")
        Path(folder, "empty.py").touch()
        # Byte code is cached as on a user's machine, whatever this one is set to.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env.update(PYTHONPATH=f"{ROOT}:{folder}", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")

        def run(options: tuple[str, ...], more: dict[str, str]) -> float:
            """The process's own CPU seconds: what other processes take away here is more than what is measured."""
            command = [sys.executable, "-m", "pytest", "-q", *options, str(test)]
            before = sum(getrusage(RUSAGE_CHILDREN)[:2])
            subprocess.run(command, env={**env, **more}, check=True, stdout=subprocess.DEVNULL, cwd=folder)
            return sum(getrusage(RUSAGE_CHILDREN)[:2]) - before

        aims = dict(zip(BYTECODE, ("under 3 ms", "under 12 ms"), strict=True))
        for kind, more in BYTECODE.items():
            for options in WAYS.values():
                run(options, more)
            rounds = [{way: run(options, more) for way, options in WAYS.items()} for _ in range(ROUNDS)]
            costs = {
                way: f"{median(one['by `-p`'] - one[way] for one in rounds) * 1000:+.1f} ms" for way in list(WAYS)[:2]
            }
            yield Figure(
                f"enabled by `-p`, and unused, CPU, {kind}; against an empty plugin by `-p`",
                "; ".join(costs.values()),
                aims[kind],
                f"{median(one['by `-p`'] for one in rounds) * 1000:.0f} ms against "
                f"{median(one['without'] for one in rounds) * 1000:.0f} ms",
            )
        script = (
            "import sys, pytest; pytest.main(['-q', '-p', 'pytest_anchor', sys.argv[1]]);"
            "sys.exit(any(name in sys.modules for name in ('requests', 'filelock')))"
        )
        check = [sys.executable, "-c", script, str(test)]
        imports = subprocess.run(check, env=env, stdout=subprocess.DEVNULL, cwd=folder, check=False)
    yield Figure("modules requests and filelock imported", "yes" if imports.returncode else "no", "no", "")
