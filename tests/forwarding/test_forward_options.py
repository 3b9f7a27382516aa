"""When forwarding is on, and for which hosts."""

from __future__ import annotations

import pytest

from pytest_anchor.client import Client
from pytest_anchor.errors import AnchorConfigError
from pytest_anchor.forwarding import forward
from pytest_anchor.plugin.options import FORWARDED_HOSTS, read_settings
from pytest_anchor.settings import Settings

FAR, NEAR = "--anchor-base-url=https://api.example", "--anchor-base-url=http://localhost:8000"


@pytest.fixture
def settings(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Read the settings that options and an ini file make."""

    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # the two plugins for Playwright exclude each other

    def settings(*options: str, ini: str = "") -> Settings:
        pytester.makeini(f"[pytest]\n{ini}\n")
        return read_settings(pytester.parseconfig("-p", "pytest_anchor", *options))

    return settings


@pytest.mark.parametrize(
    ("options", "ini", "hosts"),
    [
        ([FAR], "", FORWARDED_HOSTS),
        ([NEAR], "", ""),
        (["--anchor-local"], "", ""),
        (["--anchor-base-url=http://[::1]:8000"], "", ""),
        ([NEAR, "--anchor-forward=on"], "", FORWARDED_HOSTS),
        (["--anchor-local", "--anchor-forward=on"], "", FORWARDED_HOSTS),
        ([FAR, "--anchor-forward=off"], "", ""),
        ([FAR], "anchor_forward = off", ""),
        ([FAR, "--anchor-forward=auto"], "anchor_forward = off", FORWARDED_HOSTS),
        ([FAR, "--anchor-forward-hosts", "Shop.test, *.shop.test"], "", "shop.test,*.shop.test"),
        ([FAR], "anchor_forward_hosts = shop.test", "shop.test"),
    ],
)
def test_when_and_what(settings, options: list[str], ini: str, hosts: str):
    assert ",".join(settings(*options, ini=ini).forwarded_hosts) == hosts


@pytest.mark.parametrize("options", [["--anchor-forward=yes"], ["--anchor-forward-hosts=*"]])
def test_values_that_are_none(settings, options: list[str]):
    with pytest.raises((AnchorConfigError, pytest.UsageError)):
        settings(FAR, *options)


def test_nothing_is_asked_where_it_is_off(settings):
    client = Client(settings(FAR, "--anchor-forward=off"))
    assert forward(client, None) == ""
    assert not client.used
