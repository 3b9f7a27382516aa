"""The fixtures of the tests of the command line: a plugin that each of their files names."""

import pytest
from commands import HOUR
from fault_server import KEY

from pytest_anchor.registry.journal import Run
from pytest_anchor.tags import TAG, new_tag, run_tag


@pytest.fixture
def environment(monkeypatch, server, quick, tmp_path):
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def strangers(server):
    """Sessions of somebody else, which no command may end."""
    theirs = [
        server.add(),
        server.add("r1", "nightly"),
        server.add("pytest-anchor:run=r12"),
        server.add(TAG, run_tag("r2"), new_tag("other-1")),
    ]
    for one in theirs:
        server.sessions[one].created -= 9.5 * HOUR
    yield theirs
    assert set(theirs) <= set(server.alive)
    assert server.count("DELETE", "/v1/sessions/all") == 0
    assert KEY not in str(server.requests)


@pytest.fixture
def alive(server, strangers):
    return lambda: [one for one in server.alive if one not in strangers]


@pytest.fixture
def registry(tmp_path):
    return tmp_path / ".pytest_anchor"


@pytest.fixture
def dead(registry, environment):
    """A run that is over and left its folder."""
    run = Run(registry / "dead")
    run.join()
    run.leave()
    return run


@pytest.fixture
def live(registry, environment):
    run = Run(registry / "live")
    run.join()
    yield run
    run.leave()


@pytest.fixture(params=["others may write", "a link", "a file"])
def untrusted(request, dead, registry):
    """The registry cannot be trusted any more."""
    what = request.param
    if what == "others may write":
        registry.chmod(0o777)
    else:
        registry.rename(registry.with_name("moved"))
        registry.symlink_to("moved") if what == "a link" else registry.write_text("")
