"""The limits on a real Redis and a real Valkey server."""

import importlib.util
import shutil
import time
from contextlib import closing

import pytest
from certificates import make_certificate
from limited_owners import BUSY, begin, wait_for
from redis_servers import MISSING, RealServer, TlsRoute, find_program
from shared_runs import Machines

from pytest_anchor.budget import redis_server, shared_store
from pytest_anchor.budget.redis_server import RedisServer, ServerError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("redis") is None, reason="redis-py is not installed"),
]
KEY = "pytest-anchor:{test}:limits"


@pytest.fixture(scope="module", params=["redis", "valkey"])
def real(request, tmp_path_factory):
    program = find_program(request.param)
    if program is None:
        pytest.skip(MISSING.format(request.param))
    with RealServer(program, tmp_path_factory.mktemp(request.param)) as real:
        yield real


@pytest.fixture
def limits(real, tmp_path, monkeypatch):
    """Make limits of a run on a machine of its own, which asks the real server."""
    monkeypatch.setattr(shared_store, "RETRY_INTERVAL", 0.05)
    monkeypatch.setattr(redis_server, "TIMEOUT", 0.5)
    real.ask("FLUSHALL")
    made = []

    def limits(run, url=None, **values):
        machines = Machines(tmp_path, RedisServer(url or real.url, KEY))
        made.append(machines)
        return machines.limits(run, **values)

    yield limits
    for machines in made:
        machines.close()


@pytest.mark.parametrize("by", ["url", "socket_url"])
def test_a_value_is_replaced_only_where_it_is_unchanged_and_expires(real, by):
    real.ask("FLUSHALL")
    one, other = (RedisServer(getattr(real, by), KEY) for _ in range(2))
    value, now = one.read()
    assert value == b""
    assert now == pytest.approx(time.time(), abs=BUSY)
    assert one.replace(b"", b"x" * 100)
    assert not other.replace(b"", b"y" * 100)
    assert other.replace(b"x" * 100, b"\xff\x00" * 50)
    assert one.read().value == b"\xff\x00" * 50
    assert 3_000 < int(real.ask("TTL", KEY)[1:]) <= redis_server.LIFETIME


def test_runs_share_their_limits(limits):
    one, other = limits("a", cap=2), limits("b", cap=2)
    begin(one, "a-1"), begin(other, "b-1")
    assert len(one.store.update(lambda state, _now: (state, state.slots))) == 2
    one.release_slots(["a-1"])
    assert len(other.store.update(lambda state, _now: (state, state.slots))) == 1


def test_a_server_that_is_stopped_killed_flushed_and_full(real, limits):
    a, b = limits("a", cap=9), limits("b", cap=9)
    begin(a, "a-1"), begin(b, "b-1")
    real.stop()
    begin(a, "a-2")
    real.go_on()
    wait_for(lambda: a.store.is_joined)
    real.kill()
    begin(a, "a-3")
    real.start()  # empty
    wait_for(lambda: a.store.is_joined)
    begin(b, "b-2")
    wait_for(lambda: b.store.is_joined)
    real.ask("FLUSHALL")
    begin(a, "a-4"), begin(b, "b-3")
    assert len(a.store.update(lambda state, _now: (state, state.slots))) == 7
    real.ask("CONFIG", "SET", "maxmemory", "1")
    begin(a, "a-5")
    real.ask("CONFIG", "SET", "maxmemory", "0")
    assert "used memory > 'maxmemory'" in a.store.outage.why
    wait_for(lambda: a.store.is_joined)
    assert len(a.store.update(lambda state, _now: (state, state.slots))) == 8


@pytest.mark.parametrize(
    ("command", "why"),
    [(("HSET", KEY, "a", "b"), "WRONGTYPE"), (("SETRANGE", KEY, str(5 << 20), "x"), "its value is not one of ours")],
)
def test_a_value_of_another_kind_is_left_alone(real, limits, command, why):
    real.ask(*command)
    one = limits("a", cap=1)
    begin(one, "a-1")
    assert why in one.store.outage.why
    assert not one.store.is_joined


@pytest.fixture(scope="module")
def program():
    found = find_program("redis") or find_program("valkey")
    return found or pytest.skip(MISSING.format("redis"))


def test_a_password_and_a_user_who_may_not_do_all(program, tmp_path):
    with RealServer(program, tmp_path / "r", "--requirepass", "s3cret") as real:
        assert RedisServer(f"redis://:s3cret@127.0.0.1:{real.port}", KEY).read().value == b""
        for wrong in ("", ":wr0ng@", "nobody:wr0ng@"):
            with pytest.raises(ServerError) as caught:
                RedisServer(f"redis://{wrong}127.0.0.1:{real.port}", KEY).read()
            assert "wr0ng" not in str(caught.value)
            assert "Auth" in str(caught.value)
    with RealServer(program, tmp_path / "q") as real:
        real.ask("ACL", "SETUSER", "default", "-eval")
        with pytest.raises(ServerError, match="(?i)no ?perm"):
            RedisServer(real.url, KEY).replace(b"", b"x" * 50)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
def test_tls_with_a_password(program, tmp_path):
    certificate, context = make_certificate(tmp_path)
    with (
        RealServer(program, tmp_path / "r", "--requirepass", "s3cret") as real,
        closing(TlsRoute(real.port, context)) as route,
    ):
        url = f"rediss://:s3cret@localhost:{route.port}/0"
        trusted = RedisServer(f"{url}?ssl_ca_certs={certificate}", KEY)
        assert trusted.replace(b"", b"x" * 50)
        assert trusted.read().value == b"x" * 50
        elsewhere = f"rediss://:s3cret@127.0.0.1:{route.port}/0?ssl_ca_certs={certificate}"
        for untrusted in (url, elsewhere):
            with pytest.raises(ServerError, match="(?i)certificate") as caught:
                RedisServer(untrusted, KEY).read()
            assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "unix:///nowhere/at/all", "redis://127.0.0.1:1/?odd=1&db=x"])
def test_a_server_that_is_not_there(url):
    with pytest.raises(ServerError):
        RedisServer(url, KEY).read()
