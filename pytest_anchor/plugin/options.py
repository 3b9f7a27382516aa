"""The options: one table, from which the command line, the ini file, the environment and the help are made.

PYTEST_DONT_REWRITE: every run with this plugin imports this, and it has no assertion.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import AnchorConfigError
from ..settings import (
    BASE_URL_VARIABLE,
    CHROMIUM_VARIABLE,
    DEFAULT_BASE_URL,
    KEY_VARIABLES,
    REGISTRY_NAME,
    Settings,
    check_base_url,
    check_choice,
    check_hosts,
    check_max_sessions,
    check_number,
    check_run_id,
    check_seconds,
    ci_run_id,
    is_local_url,
    key_from_environment,
    new_invocation,
    socket_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

FORWARDED_HOSTS = "localhost,127.0.0.1,[::1],*.localhost"


class Option(NamedTuple):
    """One option.

    :param check: makes a value of the option's text; it is given the option's name as well.
    """

    metavar: str
    help: str
    default: str = ""
    variable: str = ""
    check: Callable[[str, str], Any] = lambda _name, value: value


OPTIONS = {
    "base_url": Option(
        "URL",
        f"URL of Anchor's API (environment: {BASE_URL_VARIABLE}; default: {DEFAULT_BASE_URL})",
        DEFAULT_BASE_URL,
        BASE_URL_VARIABLE,
        lambda _name, value: check_base_url(value),
    ),
    "registry": Option(
        "DIR", f"folder for the record of created sessions (default: {REGISTRY_NAME} in pytest's rootdir)"
    ),
    "on_leak": Option(
        "fail|warn",
        "what a session that could not be ended does to the exit status: fail (default) or warn",
        "fail",
        check=lambda name, value: check_choice(name, value, ("fail", "warn")),
    ),
    "sweep_timeout": Option(
        "SECONDS", "seconds that the final sweep may take (default: 60)", "60", check=check_seconds
    ),
    "sweep_at_once": Option(
        "N",
        "sessions that a sweep ends at the same time (default: 16)",
        "16",
        check=lambda name, value: check_number(name, value, 1, 256),
    ),
    "create_timeout": Option(
        "SECONDS",
        "seconds that a creation waits for what the plan allows, at most (default: 300)",
        "300",
        check=check_seconds,
    ),
    "create_retries": Option(
        "N",
        "how often a creation that met a transient failure is tried again (default: 2)",
        "2",
        check=lambda name, value: check_number(name, value, 0, 10),
    ),
    "max_sessions": Option(
        "N|auto|off",
        "sessions open at once, over all runs of this registry: a number, auto (default: the plan's) or off",
        "auto",
        check=check_max_sessions,
    ),
    "prefetch": Option(
        "N",
        "sessions that each process creates ahead for its next tests (default: 0)",
        "0",
        check=lambda name, value: check_number(name, value, 0, 100),
    ),
    "end": Option(
        "inline|background",
        "when a teardown's sessions are ended: before the next test, inline (default), or meanwhile, in the background",
        "inline",
        check=lambda name, value: check_choice(name, value, ("inline", "background")),
    ),
    "run_id": Option(
        "ID",
        "name of the run in its sessions' tags, which shards may share (default: the CI's, or random)",
        check=lambda _name, value: check_run_id(value),
    ),
    "reaper": Option(
        "on|off",
        "whether the sessions of a run that is killed are ended: on (default) or off",
        "on",
        check=lambda name, value: check_choice(name, value, ("on", "off")),
    ),
    "forward": Option(
        "auto|on|off",
        "whether the test machine's localhost is there for the browsers, too: auto (default: on, unless they run on "
        "this machine anyway), on or off; needs pytest-anchor[playwright]",
        "auto",
        check=lambda name, value: check_choice(name, value, ("auto", "on", "off")),
    ),
    "forward_hosts": Option(
        "HOSTS",
        f"the names by which they reach it, separated by commas (default: {FORWARDED_HOSTS})",
        FORWARDED_HOSTS,
        check=check_hosts,
    ),
    "chromium": Option(
        "PATH",
        "the Chromium for --anchor-local (default: looked for on PATH and in the usual places)",
        variable=CHROMIUM_VARIABLE,
    ),
}
_LOCAL_HELP = "serve Anchor's API on this machine with local Chromium: free, offline, needs pytest-anchor[local]"


def add_options(parser: pytest.Parser) -> None:
    """Declare all options, on the command line and in the ini file."""
    group = parser.getgroup(
        "anchor",
        f"Anchor Browser sessions (pytest-anchor); the API key is read from {' or '.join(KEY_VARIABLES)}",
    )
    for name, option in OPTIONS.items():
        group.addoption(_flag(name), dest=f"anchor_{name}", metavar=option.metavar, help=option.help)
        parser.addini(f"anchor_{name}", option.help)
    group.addoption("--anchor-local", action="store_true", dest="anchor_local", help=_LOCAL_HELP)
    parser.addini("anchor_local", _LOCAL_HELP, type="bool", default=False)


def read_settings(config: pytest.Config) -> Settings:
    """What the command line, the environment and the ini file say; the first of them wins.

    :raises AnchorConfigError: a value cannot be used.
    """

    def value(name: str, default: str = "") -> Any:
        option = OPTIONS[name]
        given = config.getoption(f"anchor_{name}") or os.environ.get(option.variable or "\0")
        return option.check(_flag(name), str(given or config.getini(f"anchor_{name}") or default or option.default))

    base_url = config.getoption("anchor_base_url") or os.environ.get(BASE_URL_VARIABLE)
    if config.getoption("anchor_base_url") and config.getoption("anchor_local"):
        raise AnchorConfigError("--anchor-local and --anchor-base-url exclude each other: give one of them")
    local = bool(config.getoption("anchor_local") or (config.getini("anchor_local") and not base_url))
    invocation = new_invocation()
    forwards = value("forward") == "on" or (
        value("forward") == "auto" and not (local or is_local_url(value("base_url")))
    )
    return Settings(
        run_id=value("run_id", ci_run_id() or invocation),
        folder=_registry(config) / invocation,
        owner="main",
        base_url="" if local else value("base_url"),
        api_key=f"local-{os.urandom(16).hex()}" if local else key_from_environment(),
        local=local,
        chromium=_program(value("chromium")),
        on_leak=value("on_leak"),
        sweep_timeout=value("sweep_timeout"),
        sweep_at_once=value("sweep_at_once"),
        create_timeout=value("create_timeout"),
        create_retries=value("create_retries"),
        max_sessions=value("max_sessions"),
        prefetch=value("prefetch"),
        end_in_background=value("end") == "background",
        reaper=value("reaper") == "on",
        socket_folder=socket_folder(invocation),
        main_pid=os.getpid(),
        forward_hosts=value("forward_hosts") if forwards else "",
    )


def _registry(config: pytest.Config) -> Path:
    if given := config.getoption("anchor_registry"):
        return Path(config.invocation_params.dir, os.path.expanduser(given))
    beside = config.inipath.parent if config.inipath else config.rootpath
    if ini := config.getini("anchor_registry"):
        return Path(beside, os.path.expanduser(ini))
    return config.rootpath / REGISTRY_NAME


def _program(text: str) -> str:
    """The path of a program that is given as one; a bare name is looked for on PATH, wherever that is done."""
    return os.path.abspath(os.path.expanduser(text)) if os.sep in text else text


def _flag(name: str) -> str:
    return f"--anchor-{name.replace('_', '-')}"
