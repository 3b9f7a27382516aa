"""Downloads of a browser whose disk is another: their bytes reach the test machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from switched import ASYNC, SYNC, Suite

pytestmark = pytest.mark.slow

BY_SYNC = """
import hashlib, tempfile
from pathlib import Path

SCRIPT = '''size => {
  const bytes = new Uint8Array(size);
  for (let i = 0; i < size; i++) bytes[i] = (i * 31 + (i >> 8)) & 255;
  const url = URL.createObjectURL(new Blob([bytes]));
  Object.assign(document.createElement("a"), {href: url, download: "some.bin"}).click();
}'''
SIZE = 6_300_001  # more than is brought at once
PERIOD = bytes((i * 31 + (i >> 8)) & 255 for i in range(1 << 16))
EXPECTED = (PERIOD * (SIZE // len(PERIOD) + 1))[:SIZE]

def test_download(page, tmp_path):
    with page.expect_download() as info:
        page.evaluate(SCRIPT, SIZE)
    download = info.value
    download.save_as(tmp_path / "saved.bin")
    assert (tmp_path / "saved.bin").read_bytes() == EXPECTED
    assert Path(download.path()).read_bytes() == EXPECTED
    assert download.suggested_filename == "some.bin"
    assert download.failure() is None
    assert len(page.context.browser.contexts) == 2

def test_empty_download(page):
    with page.expect_download() as info:
        page.evaluate(SCRIPT, 0)
    assert Path(info.value.path()).read_bytes() == b""
"""
BY_ASYNC = (
    BY_SYNC.replace("def test", "async def test")
    .replace("with page", "async with page")
    .replace("page.evaluate", "await page.evaluate")
    .replace("download = info.value", "download = await info.value")
    .replace("download.save_as", "await download.save_as")
    .replace("download.path()", "await download.path()")
    .replace("download.failure()", "await download.failure()")
    .replace("info.value.path()", "await (await info.value).path()")
)
MOUNTED = 'mount -t tmpfs none "$0" && exec "$@"'


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for temporary files that the browser does not see."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets this user make no mount namespace")
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def chromium(backends, hidden: Path):
    return backends(prefix=("unshare", "--mount", "sh", "-c", MOUNTED, str(hidden)))


@pytest.mark.parametrize(("plugins", "test"), [(SYNC, BY_SYNC), (ASYNC, BY_ASYNC)], ids=["sync", "asyncio"])
def test_the_bytes_arrive(suite: Suite, hidden: Path, plugins: tuple[str, ...], test: str, monkeypatch):
    suite.write(test)
    suite.more_env["TMPDIR"] = str(hidden)
    run = suite.run_process("test", plugins=plugins)
    assert run.outcomes == {"passed": 2}, run.out
