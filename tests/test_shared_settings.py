"""The settings by which the runs of several machines share a plan."""

import json
from pathlib import Path

import pytest
from settings_for import settings_for

from pytest_anchor.errors import AnchorConfigError
from pytest_anchor.settings import SHARED_LIMITS_VARIABLE, Settings, check_shared_limits, ci_shard, refuse_password

WITH_PASSWORD = "rediss://user:s3cret@cache.example:6380/2"
ENVIRONMENT = {
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "ANCHORBROWSER_API_KEY": "k",
    "ANCHORBROWSER_BASE_URL": "http://127.0.0.1:1",
}


@pytest.mark.parametrize(
    "url",
    ["redis://h", "redis://h:6379/0", "rediss://[::1]:6379/1?ssl_ca_certs=/x", "unix:///run/s?db=1", WITH_PASSWORD],
)
def test_urls_of_servers(url):
    assert check_shared_limits("--anchor-shared-limits", url) == url


@pytest.mark.parametrize(
    "url",
    ["h:6379", "http://h", "redis://", "unix://", "redis://h:port", "redis://h:99999", "redis://h\n", "redis://["],
)
def test_what_is_no_url_of_a_server_is_refused(url):
    with pytest.raises(AnchorConfigError, match=r"--anchor-shared-limits takes the URL of a Redis or Valkey server"):
        check_shared_limits("--anchor-shared-limits", url)


def test_what_is_refused_is_not_shown_since_it_may_hold_a_password():
    with pytest.raises(AnchorConfigError) as caught:
        check_shared_limits("x", "reddis://:s3cret@h")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", [WITH_PASSWORD, "redis://:p@h", "redis://h?password=p", "unix://u:p@/run/s"])
def test_a_password_is_refused_where_others_see_it(url):
    with pytest.raises(AnchorConfigError, match=SHARED_LIMITS_VARIABLE) as caught:
        refuse_password("--anchor-shared-limits", url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "redis://h", "redis://user@h", "unix:///run/@password"])
def test_what_has_no_password_may_stand_there(url):
    refuse_password("--anchor-shared-limits", url)


def some(url):
    return settings_for(Path("/x/r"), api_key="k", shared_limits=check_shared_limits("", url))


def test_a_password_is_in_no_repr_and_does_not_cross_to_a_worker(monkeypatch):
    settings = some(WITH_PASSWORD)
    assert "s3cret" not in repr(settings) + repr(settings.shared_limits)
    assert "s3cret" not in json.dumps(settings.for_worker("gw0"))
    monkeypatch.setenv(SHARED_LIMITS_VARIABLE, WITH_PASSWORD)
    assert Settings.of_worker(settings.for_worker("gw0"), Path("/y")).shared_limits == WITH_PASSWORD


def test_a_url_without_one_crosses_as_a_plain_text():
    values = some("redis://user@h").for_worker("gw0")
    assert type(values["shared_limits"]) is str
    assert Settings.of_worker(values, Path("/y")).shared_limits == "redis://user@h"


@pytest.mark.parametrize(
    ("environ", "shard"),
    [
        ({}, ""),
        ({"CI_NODE_INDEX": "5"}, "5"),
        ({"CIRCLE_NODE_INDEX": "0", "CI_NODE_INDEX": ""}, "0"),
        ({"BUILDKITE_PARALLEL_JOB": "\x1b[31m"}, ""),
    ],
)
def test_which_shard_a_machine_is(environ, shard):
    assert ci_shard(environ) == shard


# in pytest


@pytest.fixture
def configure(pytester, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def configure(*args):
        return pytester.parseconfigure("-p", "pytest_anchor", *args)

    return configure


def settings_of(config):
    from pytest_anchor.plugin.options import read_settings

    return read_settings(config)


def test_the_option_wins_over_the_environment_and_that_over_the_ini(pytester, configure, monkeypatch):
    pytester.makeini("[pytest]\nanchor_shared_limits = redis://ini")
    assert settings_of(configure()).shared_limits == "redis://ini"
    monkeypatch.setenv(SHARED_LIMITS_VARIABLE, "redis://:p@env")
    assert settings_of(configure()).shared_limits == "redis://:p@env"
    assert settings_of(configure("--anchor-shared-limits", "redis://option")).shared_limits == "redis://option"


def test_without_it_nothing_is_shared(configure):
    settings = settings_of(configure())
    assert (settings.shared_limits, settings.shared_lease) == ("", 30.0)


def test_a_password_in_the_option_or_the_ini_stops_the_run(pytester, configure):
    with pytest.raises(pytest.UsageError, match="must not have a password in it") as caught:
        configure("--anchor-shared-limits", "redis://:s3cret@h")
    assert "s3cret" not in str(caught.value)
    pytester.makeini("[pytest]\nanchor_shared_limits = redis://:s3cret@h")
    with pytest.raises(pytest.UsageError, match="must not have a password in it"):
        configure()


@pytest.mark.parametrize("seconds", ["0.5", "601", "x"])
def test_a_lease_that_makes_no_sense_is_refused(configure, seconds):
    with pytest.raises(pytest.UsageError, match="--anchor-shared-lease takes"):
        configure("--anchor-shared-lease", seconds)
