"""Where Chromium is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_anchor.local.chromium import find
from pytest_anchor.local.errors import ChromiumError


def program(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_the_order(tmp_path: Path):
    on_path = tmp_path / "bin"
    on_path.mkdir()
    environ = {"PATH": str(on_path), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path / "pw")}
    with pytest.raises(ChromiumError) as missing:
        find(None, environ, "linux")
    for words in ("sudo apt-get install chromium", "dnf", "brew", "python -m playwright install chromium"):
        assert words in str(missing.value)

    program(tmp_path / "pw/chromium-999/chrome-linux/chrome")
    newest = program(tmp_path / "pw/chromium-1200/chrome-linux64/chrome")
    assert find(None, environ, "linux") == newest
    edge = program(on_path / "msedge")
    assert find(None, environ, "linux") == edge
    chromium = program(on_path / "chromium")
    assert find(None, environ, "darwin") == chromium
    shell = program(tmp_path / "pw/chromium_headless_shell-1/chrome-headless-shell-linux64/chrome-headless-shell")
    assert find(None, environ, "linux") == shell, "without a display"
    assert find(None, {**environ, "DISPLAY": ":0"}, "linux") == chromium
    shell = program(on_path / "chromium-headless-shell")
    assert find(None, environ, "linux") == shell
    named = program(tmp_path / "my chromium")
    assert find(None, {**environ, "PYTEST_ANCHOR_CHROMIUM": named}, "linux") == named
    assert find(edge, {**environ, "PYTEST_ANCHOR_CHROMIUM": named}, "linux") == edge
    assert find("msedge", environ, "linux") == edge
    with pytest.raises(ChromiumError, match="the Chromium that was named, /nowhere"):
        find(None, {**environ, "PYTEST_ANCHOR_CHROMIUM": "/nowhere"}, "linux")


def test_playwright_on_a_mac(tmp_path: Path):
    app = program(tmp_path / "chromium-1/chrome-mac/Chromium.app/Contents/MacOS/Chromium")
    assert find(None, {"PATH": "", "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path)}, "darwin") == app
