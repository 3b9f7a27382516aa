"""What the enabled plugin costs a suite that never asks for a session."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from measure import ROOT, Figure, paired

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 40


def figures() -> Iterator[Figure]:
    """Whole-process time with the plugin against the same command without it."""
    with tempfile.TemporaryDirectory() as folder:
        test = Path(folder, "test_nothing.py")
        test.write_text("def test_nothing(): pass\n", encoding="utf-8")
        # Byte code is cached as on a user's machine, whatever this one is set to.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPATH"] = str(ROOT)

        def run(*options: str) -> None:
            command = [sys.executable, "-m", "pytest", "-q", *options, str(test)]
            subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, cwd=folder)

        # The fastest of each: what another process takes away here is more than what is measured.
        with_it, without = paired(
            lambda: run("-p", "pytest_anchor"), lambda: run("-p", "no:pytest_anchor"), ROUNDS, min
        )
        script = (
            "import sys, pytest; pytest.main(['-q', '-p', 'pytest_anchor', sys.argv[1]]);"
            "sys.exit(any(name in sys.modules for name in ('requests', 'filelock')))"
        )
        check = [sys.executable, "-c", script, str(test)]
        imports = subprocess.run(check, env=env, stdout=subprocess.DEVNULL, cwd=folder, check=False)
    yield Figure(
        "enabled and unused, against `-p no:pytest_anchor`",
        f"{(with_it - without) * 1000:+.1f} ms",
        "under 5 ms",
        f"{with_it * 1000:.0f} ms against {without * 1000:.0f} ms",
    )
    yield Figure("modules requests and filelock imported", "yes" if imports.returncode else "no", "no", "")
