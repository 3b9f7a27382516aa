import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import fault_server as fs
import pytest
from fault_server import KEY
from processes import CHECKOUT
from real_runs import Suite
from real_runs import environment as run_environment
from records import intend, opened, tags

from pytest_anchor.__main__ import main
from pytest_anchor.api import AnchorAPI
from pytest_anchor.reporting import progress
from pytest_anchor.tags import TAG

pytest_plugins = ["command_fixtures"]
pytestmark = pytest.mark.usefixtures("strangers")


# end


def test_end(server, environment, alive, capsys):
    ids, other = [server.add(TAG), server.add(TAG)], server.add("theirs")
    assert main(["end", *ids, ids[0]]) == 0
    assert alive() == [other]
    assert capsys.readouterr().out == f"{ids[0]}: ended\n{ids[1]}: ended\n"
    assert server.count("DELETE") == 2


def test_end_takes_many_at_once(server, environment, alive):
    ids = [server.add(TAG) for _ in range(8)]
    together = threading.Barrier(8, timeout=10)

    def wait_for_the_others(_handler, act):
        together.wait(10)
        return act()

    server.fail("DELETE", *[wait_for_the_others] * 8)
    assert main(["end", *ids]) == 0
    assert alive() == []


def test_a_session_that_is_over_is_no_failure(server, environment, capsys):
    session_id = server.add(TAG)
    server.end(session_id)
    assert main(["end", session_id]) == 0
    assert capsys.readouterr().out == f"{session_id}: already over, or no session of this account\n"


def test_what_the_api_still_lists_is_noted(server, environment, capsys):
    session_id = server.add(TAG)
    server.fail_always("DELETE", fs.status(401))
    assert main(["end", session_id]) == 0
    assert capsys.readouterr().out == f"{session_id}: already over, but the API lists it as 'running'\n"


def test_one_failure_does_not_keep_the_others(server, environment, alive, capsys):
    bad, good = server.add(TAG), server.add(TAG)
    server.fail_always("DELETE", fs.on(bad, fs.status(403, "no")))
    assert main(["end", bad, good]) == 1
    assert alive() == [bad]
    out, err = capsys.readouterr()
    assert out == f"{good}: ended\n"
    assert err.startswith(f"could not end session {bad}: HTTP 403: “no”")


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["end", "dry-run"])
@pytest.mark.parametrize("value", ["all", "ALL", "../all", "%61ll", "", "a\n", "\x1b[2J"])
def test_no_other_id_is_sent(server, environment, capsys, value, more):
    assert main(["end", value, *more]) == 1
    assert server.requests == []
    out, err = capsys.readouterr()
    assert out == ""
    assert "not a session id" in err
    assert "\x1b" not in err


def test_an_api_that_is_silent_holds_nobody(server, environment, alive, capsys):
    ids = [server.add(TAG) for _ in range(20)]
    server.fail_always("DELETE", fs.silent)
    before = time.monotonic()
    assert main(["end", *ids, "--timeout", "0.5"]) == 1
    assert time.monotonic() - before < 8
    assert alive() == ids
    assert capsys.readouterr().err.count("could not end session") == 20


def test_end_dry_run_asks_nothing(server, environment, alive, capsys):
    session_id = server.add(TAG)
    assert main(["end", "--dry-run", session_id]) == 1
    assert alive() == [session_id]
    assert server.requests == []
    assert capsys.readouterr().out == f"would end {session_id}\n"


def test_the_base_url_option_wins(server, environment, alive, monkeypatch):
    monkeypatch.setenv("ANCHORBROWSER_BASE_URL", "http://elsewhere.example")
    session_id = server.add(TAG)
    assert main(["end", "--base-url", f"{server.url}/", session_id]) == 0
    assert alive() == []


# use


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["sweep", "--tag", "nightly"], "needs --older-than"),
        (["sweep", "--older-than", "1h"], "goes with --tag"),
        (["sweep", "--run-id", "r1", "--registry", "x"], "leave it out"),
        (["sweep", "--run-id"], "not a run of a CI service"),
        (["ls", "--run-id"], "not a run of a CI service"),
        (["sweep", "--run-id", ""], "run id ''"),
        (["sweep", "--run-id", "a,b"], "run id 'a,b'"),
        (["ls", "--run-id", "\x1b[2J"], "\\x1b"),
        (["sweep", "--tag", "", "--older-than", "1h"], "--tag takes one tag"),
        (["sweep", "--tag", " ", "--older-than", "1h"], "--tag takes one tag"),
        (["sweep", "--tag", "a,b", "--older-than", "1h"], "--tag takes one tag"),
        (["sweep", "--tag", "a\nb", "--older-than", "1h"], "--tag takes one tag"),
        (["sweep", "--tag", "\x1b", "--older-than", "1h"], "--tag takes one tag"),
        *((["sweep", "--tag", "a", "--older-than", bad], "such as 90") for bad in ("", "h", "-1", "1w", "1 h", "1h30m", "nan", "inf", "١")),
        *((["sweep", "--timeout", bad], "--timeout takes") for bad in ("0", "-1", "nan", "x")),
        (["end", "abc", "--timeout", "0"], "--timeout takes"),
        (["end", "abc", "--base-url", "http://elsewhere.example"], "in the clear"),
        (["ls", "--remote", "--base-url", "nonsense"], "not an http:// or https:// URL"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_a_sentence(server, environment, capsys, arguments, word):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert word in err
    assert "\x1b" not in err
    assert server.requests == []


@pytest.mark.parametrize("command", [["end", "abc"], ["ls", "--remote"], ["sweep", "--run-id", "r1"]], ids=" ".join)
def test_without_a_key(server, environment, monkeypatch, capsys, command):
    monkeypatch.delenv("ANCHORBROWSER_API_KEY")
    assert main(command) == 2
    assert "ANCHORBROWSER_API_KEY" in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["end"],
        ["nonsense"],
        ["end", "abc", "--nonsense"],
        ["sweep", "all"],
        ["ls", "--dry-run"],
        ["sweep", "--tag", "a", "--run-id", "b", "--older-than", "1"],
    ],
)
def test_wrong_use(server, environment, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m pytest_anchor" in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize(
    ("command", "word"), [("ls", "jq"), ("sweep", "if: always()"), ("end", "--dry-run"), ("local", "--port")]
)
def test_each_command_has_a_help_of_its_own(capsys, command, word):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert word in capsys.readouterr().out


@pytest.mark.parametrize("by", ["record", "tags", "ids"])
def test_a_long_sweep_says_how_far_it_is(server, api, dead, alive, monkeypatch, capsys, by):
    monkeypatch.setattr(progress, "QUIET", 0.0)
    ids = [opened(server, api, dead, f"dead-{n}") for n in range(3)]
    command = {"record": ["sweep"], "tags": ["sweep", "--run-id", "r1"], "ids": ["end", *ids]}[by]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert err.startswith("anchor: ending sessions: ")
    assert " of 3\n" in err
    assert "anchor:" not in out
    assert alive() == []


def test_nothing_more_is_sent_once_it_is_interrupted(server, environment, alive, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Progress, "__call__", interrupt)
    ids = [server.add(TAG) for _ in range(40)]
    server.fail_always("DELETE", fs.slow(1.0))
    assert main(["end", *ids]) == 130
    for thread in threading.enumerate():
        if thread.name == "pytest-anchor-end":
            thread.join(10)
    assert server.count("DELETE") == 16
    assert len(alive()) == 24
    assert capsys.readouterr().err.startswith("interrupted: ")


def test_those_that_hang_leave_time_for_the_others(server, environment, alive, capsys):
    ids = [server.add(TAG, "pytest-anchor:run=r1") for _ in range(40)]
    server.fail_always("DELETE", fs.among(ids[:20], fs.silent))
    assert main(["sweep", "--run-id", "r1", "--timeout", "4"]) == 1
    assert set(alive()) == set(ids[:20])
    out, err = capsys.readouterr()
    assert out.count(": ended\n") == 20
    assert err.count("no answer") == 20


def test_those_that_hang_once_are_tried_again(server, environment, alive, capsys):
    for _ in range(3):
        server.add(TAG, "pytest-anchor:run=r1")
    server.fail_always("DELETE", fs.once_each(fs.silent))
    assert main(["sweep", "--run-id", "r1", "--timeout", "4"]) == 0
    assert alive() == []


def test_an_api_that_asks_to_wait_is_left_alone(server, environment, alive, capsys):
    ids = [server.add(TAG, "pytest-anchor:run=r1") for _ in range(40)]
    server.fail_always("DELETE", fs.status(429, Retry_After="30"))
    assert main(["sweep", "--run-id", "r1", "--timeout", "4"]) == 1
    assert server.count("DELETE") <= 16
    assert server.count("GET") == 1
    assert capsys.readouterr().err.count("HTTP 429") == len(ids) == len(alive())


# real processes


def command(*arguments, **env):
    return subprocess.Popen(
        [sys.executable, "-m", "pytest_anchor", *arguments],
        env={**run_environment(), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"]], ids=" ".join)
def test_help_is_cheap(arguments):
    code = (
        "import sys, pytest_anchor.__main__ as m\n"
        "try: m.main(sys.argv[1:])\n"
        "finally: print({'requests', 'filelock', 'pytest'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "set()\n")
    assert "usage: python -m pytest_anchor" in done.stdout


def test_what_a_run_that_died_left_is_listed_and_swept(server, alive, tmp_path):
    suite = Suite(tmp_path, server)
    suite.write("import os\ndef test_it(anchor_session):\n    anchor_session()\n    os._exit(9)\n")
    assert suite.run("--anchor-reaper", "off").status == 9
    (left,) = set(alive()) - set(suite.strangers)
    where = ["--registry", str(suite.registry)]
    status, out, err = finished(command("ls", "--json", *where))
    assert (status, err) == (1, "")
    assert [(row["id"], row["test"], row["run_lives"]) for row in json.loads(out)] == [
        (left, "test_it.py::test_it", False)
    ]
    status, out, _progress = finished(command("sweep", *where, **server.env))
    assert status == 0
    assert "recovered 1 session" in out
    assert alive() == suite.strangers
    assert finished(command("ls", *where))[0] == 0


def test_as_a_command_from_any_machine(server, alive):
    session_id = server.add(*tags("x-1"))
    status, out, err = finished(command("ls", "--remote", "--run-id", "r1", PYTHONIOENCODING="ascii", **server.env))
    assert (status, err) == (1, "")
    assert session_id in out
    status, out, err = finished(command("sweep", "--run-id", "r1", **server.env))
    assert (status, out, err) == (0, f"{session_id}: ended\n1 ended, nothing is left.\n", "")
    assert alive() == []


def test_a_terminal_that_knows_no_such_letter(api, dead):
    intend(dead, "dead-1", test="é")
    status, out, err = finished(command("ls", PYTHONIOENCODING="ascii"))
    assert (status, err) == (1, "")
    assert "\\xe9" in out


@pytest.mark.parametrize("by", ["record", "tags", "ids"])
@pytest.mark.parametrize("lost", ["out", "err", "both"])
def test_output_that_nobody_reads_keeps_nothing_from_being_ended(server, dead, alive, by, lost):
    api = AnchorAPI(server.url, KEY)
    ids = [opened(server, api, dead, f"dead-{n}") for n in range(5)]
    server.fail_always("DELETE", fs.once_each(fs.status(409)))
    # The reader of a pipe has gone, or there was no stream from the start.
    lose = {"out": " | true", "err": " 2>&-", "both": " >&- 2>&-"}[lost]
    arguments = {"record": "sweep", "tags": "sweep --run-id r1", "ids": f"end {' '.join(ids)}"}[by]
    for _ in range(2):
        done = subprocess.run(
            f"{shlex.quote(sys.executable)} -m pytest_anchor {arguments}{lose}",
            shell=True,
            env={**run_environment(), **server.env},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert "Broken pipe" not in done.stderr
    assert alive() == []


@pytest.mark.parametrize("by", ["record", "tags", "ids"])
def test_ctrl_c_ends_it_at_once(server, dead, alive, until, by):
    api = AnchorAPI(server.url, KEY)
    ids = [opened(server, api, dead, f"dead-{n}") for n in range(20)]
    server.fail_always("DELETE", fs.silent)
    process = command(
        *{"record": ["sweep"], "tags": ["sweep", "--run-id", "r1"], "ids": ["end", *ids]}[by], **server.env
    )
    until(lambda: server.count("DELETE") >= 16)
    process.send_signal(signal.SIGINT)
    before = time.monotonic()
    status, _, err = finished(process)
    assert time.monotonic() - before < 8
    assert status == 130
    *progress, last = err.splitlines()
    assert last == "interrupted: what has not been ended is still there; the same command goes on"
    assert all(line.startswith("anchor: ending sessions: ") for line in progress)  # seen where the machine is busy
    assert alive() == ids
