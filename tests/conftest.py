import faulthandler
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_server import KEY, FaultServer
from processes import forget_the_machine

from pytest_anchor import api as api_module
from pytest_anchor import settings as settings_module
from pytest_anchor.api import AnchorAPI
from pytest_anchor.registry import Run
from pytest_anchor.session import Owner
from pytest_anchor.settings import Settings

# A shell's background jobs ignore it, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Nothing of this machine's key, base URL, proxy or Python settings is seen, nor of the CI run that this is part of.
forget_the_machine(name for names in settings_module._CI.values() for name in names)


AGAIN = 20.0  # seconds after which a test whose time is up, and whose clean-up hangs as well, is interrupted again


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Iterator[object]:
    """Let the alarm of pytest-timeout go off more than once."""
    answer = yield
    if settings.method == "signal":
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, AGAIN)
    return answer


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End a process which a test's thread keeps from its end, and show that thread."""
    faulthandler.dump_traceback_later(60, exit=True)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries as ever, without the waiting."""
    monkeypatch.setattr(api_module, "_RETRY", api_module._RETRY.new(backoff_factor=0.001, backoff_jitter=0.0))
    monkeypatch.setattr(api_module, "FIRST_PAUSE", 0.01)


@pytest.fixture
def api(server: FaultServer, quick: None) -> AnchorAPI:
    return AnchorAPI(server.url, KEY)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path / "registry" / "inv", "main")
    run.join()
    yield run
    run.leave()


@pytest.fixture
def settings(server: FaultServer, tmp_path: Path) -> Settings:
    return Settings(
        run_id="r1",
        folder=tmp_path / "registry" / "inv",
        owner="main",
        base_url=server.url,
        api_key=KEY,
        local=False,
        chromium="",
        on_leak="fail",
        sweep_timeout=5.0,
        reaper=False,
    )


@pytest.fixture
def owner(settings: Settings, quick: None) -> Iterator[Owner]:
    owner = Owner(settings)
    yield owner
    owner.close()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait for a condition, thirty seconds at most."""

    def until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.01)

    return until
