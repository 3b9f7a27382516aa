"""What Playwright can do, an Anchor session can: probes.py, switched."""

from __future__ import annotations

from pathlib import Path

import pytest
from switched import Suite

pytestmark = pytest.mark.slow

# Named, with the reasons, in docs/playwright.md.
DIFFERENT = ["test_contexts_of_a_new_browser"]


def test_what_a_session_can_do(suite: Suite):
    suite.write(Path(__file__).with_name("probes.py").read_text(), "test_probes.py")
    run = suite.run_process("worker", "-rf", "--tb=short")
    failed = [line for line in run.out.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert len(failed) == len(DIFFERENT), failed
    for name in DIFFERENT:
        assert any(name in line for line in failed)
    assert run.outcomes["passed"] == 80
