import faulthandler
import gc
import os
import posix
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fault_server import KEY, FaultServer
from forked import Forking, broker_server, fork_servers
from parsed_once import keep_trees
from processes import forget_the_machine
from real_runs import Suite, processes_in
from real_runs import until as wait_until
from settings_for import settings_for

from pytest_anchor import settings as settings_module
from pytest_anchor.api import AnchorAPI
from pytest_anchor.api import caller as caller_module
from pytest_anchor.broker.owner import Owner
from pytest_anchor.broker.processes import Process
from pytest_anchor.broker.server import Server
from pytest_anchor.client import Client
from pytest_anchor.errors import AnchorError
from pytest_anchor.launcher import System
from pytest_anchor.registry.journal import Run
from pytest_anchor.settings import Settings, socket_identity

# A shell's background jobs ignore it, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Nothing of this machine's key, base URL, proxy or Python settings is seen, nor of the CI run that this is part of.
forget_the_machine((*settings_module._SHARDS, *(name for names in settings_module._CI.values() for name in names)))
keep_trees()


AGAIN = 20.0  # seconds after which a test whose time is up, and whose clean-up hangs as well, is interrupted again


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Iterator[object]:
    """Let the alarm of pytest-timeout go off more than once."""
    answer = yield
    if settings.method == "signal":
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, AGAIN)
    return answer


@pytest.hookimpl
def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        servers = fork_servers()
        servers.__enter__()
        config.add_cleanup(lambda: servers.__exit__(None, None, None))
        # Playwright's driver starts faster with what Node has compiled once.
        if (cache := getattr(config, "cache", None)) is not None:
            os.environ["NODE_COMPILE_CACHE"] = str(cache.mkdir("node"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[object]:
    """Have nobody look for garbage among all these tests: each run of pytest in this process looks five times."""
    gc.disable()  # of what collecting them makes, nothing is garbage
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """End a process which a test's thread keeps from its end, and show that thread."""
    faulthandler.dump_traceback_later(60, exit=True)


@pytest.fixture(autouse=True)
def forked_brokers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The brokers that this process starts are forked from one that has imported what they need."""
    Forking(broker_server).install(System, monkeypatch.setattr)


@pytest.fixture
def started_brokers(forked_brokers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The brokers that this process starts are started as users' are."""
    monkeypatch.setattr(System, "spawn", posix.posix_spawn)
    monkeypatch.setattr(System, "waitpid", posix.waitpid)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries as ever, without the waiting."""
    monkeypatch.setattr(caller_module, "BACKOFF", 0.001)
    monkeypatch.setattr(caller_module, "FIRST_PAUSE", 0.01)


@pytest.fixture
def api(server: FaultServer, quick: None) -> AnchorAPI:
    return AnchorAPI(server.url, KEY)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path / "registry" / "inv")
    run.join()
    yield run
    run.leave()


@pytest.fixture
def suite(tmp_path: Path, server: FaultServer, request: pytest.FixtureRequest) -> Iterator[Suite]:
    """A folder of tests, to be run."""
    suite = Suite(tmp_path, server, request)
    yield suite
    suite.kill_leftovers()


@pytest.fixture
def settings(server: FaultServer, tmp_path: Path) -> Settings:
    return settings_for(
        tmp_path / "registry" / "inv",
        run_id="r1",
        base_url=server.url,
        api_key=KEY,
        sweep_timeout=5.0,
        reaper=False,
        max_sessions=0,
        socket_folder=f"/tmp/pytest-anchor-{uuid4().hex[:16]}",
        main_pid=os.getpid(),
    )


@pytest.fixture
def make_owner(settings: Settings, run: Run, api: AnchorAPI) -> Iterator[Callable[..., Owner]]:
    """Make the broker's part for a process, without a broker around it."""
    owners: list[Owner] = []

    def make_owner(name: str = "main", api: AnchorAPI = api, **changes: object) -> Owner:
        own = settings._replace(owner=name, **changes)
        owners.append(Owner(name, own, run, api, own.max_sessions or 0))
        return owners[-1]

    yield make_owner
    for owner in owners:
        owner.finish(5.0)


@pytest.fixture
def owner(make_owner: Callable[..., Owner]) -> Owner:
    """The broker's part for one process, without a broker around it."""
    return make_owner()


@pytest.fixture
def serve(quick: None) -> Iterator[Callable[[Settings], Client]]:
    """A test process's client for some settings, and the broker as a thread of this very process."""
    served: list[tuple[Client, socket.socket, threading.Thread]] = []

    def serve(settings: Settings) -> Client:
        folder = Path(settings.socket_folder, "0")
        folder.parent.mkdir(mode=0o700)
        folder.mkdir(mode=0o700)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{folder}/socket")
        listener.listen()
        server = Server(settings, listener, 0, socket_identity((folder / "socket").stat()))
        thread = threading.Thread(target=server.serve, args=(Process("main", os.getpid()),), daemon=True)
        thread.start()
        client = Client(settings)
        served.append((client, listener, thread))
        return client

    yield serve
    for client, listener, thread in served:
        if thread.is_alive() and not client.is_connected:
            with suppress(AnchorError):  # whatever: it takes a part in the run that it can leave, if it has not yet
                client.request("recover", timeout=5)
        client.leave()
        thread.join(30)
        assert not thread.is_alive()
        listener.close()
        shutil.rmtree(client.settings.socket_folder, ignore_errors=True)


@pytest.fixture
def client(serve: Callable[[Settings], Client], settings: Settings) -> Client:
    """A test process's client, and the broker as a thread of this very process."""
    return serve(settings)


@pytest.fixture
def run_settings(settings: Settings) -> Iterator[Settings]:
    """Settings of a run whose broker is gone at the end, one way or another."""
    yield settings
    try:
        wait_until(lambda: not processes_in(settings.folder), 30)
    finally:
        for pid in processes_in(settings.folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(settings.socket_folder, ignore_errors=True)


@pytest.fixture
def make_client(run_settings: Settings) -> Iterator[Callable[..., Client]]:
    """Make a client of a process of the run, with changes of its settings."""
    clients: list[Client] = []

    def make_client(**changes: object) -> Client:
        clients.append(Client(run_settings._replace(**changes)))
        return clients[-1]

    yield make_client
    for client in clients:
        client.leave()


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait for a condition, thirty seconds at most."""

    def until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.01)

    return until
