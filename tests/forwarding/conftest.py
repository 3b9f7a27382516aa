"""A browser that cannot reach this machine's localhost, and a session of it for which that is forwarded."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from elsewhere import Elsewhere
from playwright.sync_api import Browser, Playwright, sync_playwright
from servers import Servers
from settings_for import settings_for

sys.path += [str(Path(__file__).parents[1] / name) for name in ("local", "playwright")]

from switched import Suite

from pytest_anchor.client import Client
from pytest_anchor.forwarding import forward
from pytest_anchor.local.chromium import find
from pytest_anchor.playwright.credentials import forward_credentials
from pytest_anchor.session import AnchorSession, AnchorSessionFactory


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Elsewhere]:
    """A local backend with a network of its own."""
    backend = Elsewhere()
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def far_client(elsewhere: Elsewhere, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A test process's client of a run whose browsers are elsewhere."""
    folder: Path = tmp_path_factory.mktemp("forwarding") / ".pytest_anchor" / "inv"
    settings = settings_for(
        folder,
        base_url=elsewhere.url,
        api_key=elsewhere.key,
        reaper=False,
        max_sessions=0,
        forward="on",
        socket_folder=f"/tmp/pytest-anchor-{os.urandom(8).hex()}",
        main_pid=os.getpid(),
    )
    client = Client(settings)
    yield client
    client.request("sweep", timeout=10, has_remote_workers=False, verbose=False)
    client.leave()
    shutil.rmtree(settings.socket_folder, ignore_errors=True)


@pytest.fixture(scope="module")
def far_session(far_client: Client) -> AnchorSession:
    """A session of a browser elsewhere, for which this machine's localhost is forwarded."""
    session = AnchorSessionFactory(far_client, {}, lambda: "tests/forwarding")()
    assert forward(far_client, session) == ""
    return session


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def far_browser(request: pytest.FixtureRequest, playwright: Playwright) -> Iterator[Browser]:
    """The session's browser; with DIRECT=1, for comparison, one on this machine."""
    if os.environ.get("DIRECT"):
        browser = playwright.chromium.launch(executable_path=find(None), args=["--no-sandbox"])
    else:
        session: AnchorSession = request.getfixturevalue("far_session")
        browser = playwright.chromium.connect_over_cdp(session.cdp_url)
        forward_credentials(browser, request.getfixturevalue("far_client"), session)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Servers of this machine, which listen on its loopback only."""
    with Servers() as started:
        yield started


@pytest.fixture
def suite(tmp_path: Path, elsewhere: Elsewhere, pytester: pytest.Pytester) -> Suite:
    """A folder of tests whose browsers are elsewhere."""
    folder = tmp_path / "suite"
    folder.mkdir()
    return Suite(folder, elsewhere, pytester)
