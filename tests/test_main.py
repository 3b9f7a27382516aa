import os
import subprocess
import sys
from pathlib import Path

import fault_server as fs
import pytest
from fault_server import KEY

from pytest_anchor.__main__ import main


@pytest.fixture
def environment(monkeypatch, server, quick):
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)


def test_end(server, environment, capsys):
    ids, other = [server.add("pytest-anchor"), server.add("pytest-anchor")], server.add("theirs")
    assert main(["end", *ids]) == 0
    assert server.alive == [other]
    assert capsys.readouterr().out == f"{ids[0]}: ended\n{ids[1]}: ended\n"


def test_a_session_that_is_over_is_no_failure(server, environment, capsys):
    session_id = server.add("pytest-anchor")
    server.end(session_id)
    assert main(["end", session_id]) == 0
    assert capsys.readouterr().out == f"{session_id}: already over\n"


def test_one_failure_does_not_keep_the_others(server, environment, capsys):
    bad, good = server.add("pytest-anchor"), server.add("pytest-anchor")
    server.fail_always("DELETE", fs.on(bad, fs.status(403, "no")))
    assert main(["end", bad, good]) == 1
    assert server.alive == [bad]
    out, err = capsys.readouterr()
    assert out == f"{good}: ended\n"
    assert err.startswith(f"could not end session {bad}: HTTP 403: “no”")


@pytest.mark.parametrize("value", ["all", "ALL", "../all", "%61ll", "", "a\n", "\x1b[2J"])
def test_no_other_id_is_sent(server, environment, capsys, value):
    stranger = server.add()
    assert main(["end", value]) == 1
    assert server.requests == []
    assert server.alive == [stranger]
    assert "\x1b" not in capsys.readouterr().err


def test_the_base_url_option_wins(server, monkeypatch, quick):
    monkeypatch.setenv("ANCHORBROWSER_API_KEY", KEY)
    monkeypatch.setenv("ANCHORBROWSER_BASE_URL", "http://elsewhere.example")
    session_id = server.add()
    assert main(["end", "--base-url", f"{server.url}/", session_id]) == 0
    assert server.alive == []


def test_without_a_key(server, monkeypatch, capsys):
    monkeypatch.setenv("ANCHORBROWSER_BASE_URL", server.url)
    assert main(["end", "abc"]) == 2
    assert "ANCHORBROWSER_API_KEY" in capsys.readouterr().err
    assert server.requests == []


def test_a_bad_base_url(server, environment, capsys):
    assert main(["end", "--base-url", "http://elsewhere.example", "abc"]) == 2
    assert "in the clear" in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize("arguments", [[], ["end"], ["nonsense"], ["end", "abc", "--nonsense"]])
def test_wrong_use(server, environment, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m pytest_anchor" in capsys.readouterr().err
    assert server.requests == []


def test_local_has_a_help_of_its_own(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["local", "--help"])
    assert caught.value.code == 0
    assert "--port" in capsys.readouterr().out


def test_as_a_command(server):
    session_id = server.add("pytest-anchor")
    done = subprocess.run(
        [sys.executable, "-m", "pytest_anchor", "end", session_id],
        env={**os.environ, **server.env, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{session_id}: ended\n", "")
    assert server.alive == []
