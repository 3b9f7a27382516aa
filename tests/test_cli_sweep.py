import threading
import time

import fault_server as fs
import pytest
from commands import HOUR, contents, told
from records import intend, intend_with, lost, opened

from pytest_anchor.__main__ import main
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.locks import JOURNAL

pytest_plugins = ["command_fixtures"]
pytestmark = pytest.mark.usefixtures("strangers")


def test_sweep_ends_what_dead_runs_left_and_nothing_else(server, api, dead, live, alive, registry, capsys):
    for n in range(3):
        opened(server, api, dead, f"dead-{n}")
    lost(server, api, dead, "dead-3", time=time.time() - 60)
    running = opened(server, api, live, "live-1")
    assert main(["sweep"]) == 0
    assert alive() == [running]
    assert not dead.folder.exists()
    out, err = capsys.readouterr()
    assert "recovered 4 sessions of the run that died" in out
    assert f"Nothing of a dead run is left on record in {registry}." in out
    assert err == ""
    assert main(["sweep"]) == 0
    assert alive() == [running]


def test_sweep_of_nothing_needs_no_key(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--dry-run"], ["--registry", "elsewhere"]):
        assert main(["sweep", *more]) == 0
        assert "Nothing of a dead run is left" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_ended_stays_on_record(server, api, dead, alive, capsys):
    one = opened(server, api, dead, "dead-1")
    server.fail_always("DELETE", fs.status(403, "no \x1b"))
    assert main(["sweep"]) == 1
    assert alive() == [one]
    err = capsys.readouterr().err
    assert f"{one} of t.py::x: HTTP 403: “no \\x1b”" in err
    assert "left of dead runs: 1; to list them: python -m pytest_anchor ls\n" in err
    server.fail_always("DELETE", None)
    assert main(["sweep"]) == 0
    assert alive() == []


def test_what_is_given_up_is_told_once(server, api, dead, alive, capsys):
    one = opened(server, api, dead, "dead-1", time=time.time() - 8 * 24 * HOUR)
    server.fail_always("DELETE", fs.status(403))
    assert main(["sweep"]) == 1
    out, err = capsys.readouterr()
    assert f"GAVE UP on {one}" in err
    assert "Nothing of a dead run" not in out
    assert main(["sweep"]) == 0
    assert alive() == [one]


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["sweep", "dry-run"])
@pytest.mark.parametrize("other", ["key", "url"])
def test_sessions_of_another_key_or_place_are_left_alone(server, api, dead, alive, monkeypatch, capsys, other, more):
    one = opened(server, api, dead, "dead-1")
    server.keys.add("another-key")
    if other == "key":
        monkeypatch.setenv("ANCHORBROWSER_API_KEY", "another-key")
    else:
        monkeypatch.setenv("ANCHORBROWSER_BASE_URL", f"{server.url}/v2")
    assert main(["sweep", *more]) == 1
    assert alive() == [one]
    assert server.requests == []
    assert "another key or base URL" in "".join(capsys.readouterr())


def test_a_list_that_cannot_be_read_is_told(server, api, dead, capsys):
    opened(server, api, dead, "dead-1")
    server.fail_always("GET", fs.status(403))
    assert main(["sweep"]) == 2
    assert "could not list" in capsys.readouterr().err


@pytest.mark.parametrize("key", [None, "kéy"])
def test_a_sweep_with_something_to_do_needs_a_key(server, api, dead, alive, monkeypatch, capsys, key):
    one = opened(server, api, dead, "dead-1")
    if key is None:
        monkeypatch.delenv("ANCHORBROWSER_API_KEY")
    else:
        monkeypatch.setenv("ANCHORBROWSER_API_KEY", key)
    assert main(["sweep"]) == 2
    assert "ANCHORBROWSER_API_KEY" in capsys.readouterr().err
    assert alive() == [one]
    assert dead.claim()  # it was let go


def test_sweep_waits_for_who_is_at_it(server, api, dead, alive):
    opened(server, api, dead, "dead-1")
    reaper = Run(dead.folder)
    assert reaper.claim()
    threading.Timer(0.6, reaper.release).start()
    assert main(["sweep"]) == 0
    assert alive() == []


def test_sweep_waits_for_nobody_before_the_rest_is_done(server, api, dead, registry, alive):
    one = opened(server, api, dead, "dead-1")
    later = Run(registry / "later")
    later.join()
    later.leave()
    opened(server, api, later, "later-1")
    reaper = Run(dead.folder)
    assert reaper.claim()
    assert main(["sweep", "--timeout", "1"]) == 1
    reaper.release()
    assert alive() == [one]


def test_sweep_waits_no_longer_than_its_timeout(server, api, dead, alive, capsys):
    one = opened(server, api, dead, "dead-1")
    reaper = Run(dead.folder)
    assert reaper.claim()
    assert main(["sweep", "--timeout", "0.3"]) == 1
    reaper.release()
    assert alive() == [one]
    server.fail_always("DELETE", fs.silent)
    before = time.monotonic()
    assert main(["sweep", "--timeout", "0.5"]) in (1, 2)
    assert time.monotonic() - before < 8
    assert alive() == [one]


def test_sweep_dry_run_changes_nothing(server, api, dead, live, registry, alive, capsys):
    one = opened(server, api, dead, "dead-1")
    lost(server, api, dead, "dead-2", test="test_lost")
    opened(server, api, live, "live-1")
    before, ids = contents(registry), alive()
    assert main(["sweep", "--dry-run"]) == 1
    assert contents(registry) == before
    assert alive() == ids
    assert {method for method, _ in server.requests} <= {"GET"}
    out = capsys.readouterr().out
    assert out == f"would end {one} of t.py::x\nwould look for, and end, a creation of test_lost\n"


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["sweep", "dry-run"])
def test_a_copied_registry_is_left_alone(server, api, live, registry, alive, capsys, more):
    one = opened(server, api, live, "live-1")
    copy = registry / "copy"
    copy.mkdir(mode=0o700)
    (copy / JOURNAL).write_bytes((live.folder / JOURNAL).read_bytes())
    assert main(["sweep", *more]) == 1
    assert alive() == [one]
    assert server.count("DELETE") == 0
    out, err = capsys.readouterr()
    assert "would end" not in out
    assert "elsewhere" in out + err


@pytest.mark.parametrize("forged", [False, True])
def test_what_a_local_backend_served_is_over_with_it_and_nothing_else_is(server, api, dead, alive, capsys, forged):
    (dead.folder / "local.url").write_text("http://127.0.0.1:1")
    (dead.folder / "local.alive").touch()
    intend(dead, "dead-1", base_url="http://127.0.0.1:1", time=time.time() - 60)
    ids = [opened(server, api, dead, "dead-2")] if forged else []
    assert main(["ls", "--json"]) == len(ids)
    assert [row["id"] for row in told(capsys)] == ids
    assert main(["sweep"]) == 0
    assert alive() == []


def test_sweep_dry_run_tells_what_would_be_left_alone(server, api, dead, alive, capsys, monkeypatch):
    then = time.time() - HOUR
    intend_with(api, dead, "dead-1", test="edited")
    dead.append("created", "dead-1", id="abc", signature="0" * 32)
    intend_with(api, dead, "dead-2", test="theirs", fingerprint="0" * 16, time=then)
    intend(dead, "dead-3", test="moved", base_url=api.base_url, fingerprint=api.fingerprint, folder_inode=1, time=then)
    opened(server, api, dead, "dead-4", test="ours")
    ids = alive()
    expected = [
        "would leave alone, since its record was edited: abc of edited",
        "would leave alone, since it was created with another key or base URL: a creation of theirs",
        "would leave alone, since it is on record elsewhere: a creation of moved",
        f"would end {ids[0]} of ours",
    ]
    assert main(["sweep", "--dry-run"]) == 1
    assert capsys.readouterr().out.splitlines() == expected
    assert main(["sweep"]) == 1
    assert alive() == []
    assert server.count("DELETE") == server.count("DELETE", f"/v1/sessions/{ids[0]}") == 1
    assert "tried" not in capsys.readouterr().err
    monkeypatch.delenv("ANCHORBROWSER_API_KEY")
    assert main(["sweep", "--dry-run"]) == 1
    assert "no API key is set" in capsys.readouterr().err


def test_sweep_dry_run_tells_what_would_be_given_up(api, dead, capsys):
    intend_with(api, dead, "dead-1", test="theirs", fingerprint="0" * 16, time=time.time() - 8 * 24 * HOUR)
    assert main(["sweep", "--dry-run"]) == 1
    assert capsys.readouterr().out.startswith("would give up on, since it was created with another key")
    assert main(["sweep"]) == 1
    assert "GAVE UP on a creation of theirs" in capsys.readouterr().err


def test_an_edited_record_ends_nothing(server, api, dead, strangers, capsys):
    intend_with(api, dead, "dead-1")
    dead.append("created", "dead-1", id=strangers[0], signature="0" * 32)
    assert main(["sweep"]) == 1
    assert server.count("DELETE") == 0
