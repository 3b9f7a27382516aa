"""Recordings are downloaded once their sessions are over, and once the API has made them."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fault_server as faults
import pytest
from fault_server import MP4, FaultServer
from real_runs import Suite, until
from records import opened

from pytest_anchor.api import AnchorAPI
from pytest_anchor.broker import recordings as module
from pytest_anchor.broker.output import OutputFolder
from pytest_anchor.broker.recordings import Recordings
from pytest_anchor.errors import AnchorAPIError
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.records import Record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def make(api: AnchorAPI, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recordings]:
    monkeypatch.setattr(module, "PAUSES", (0.02,))
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.01)
    monkeypatch.setattr(module, "TIMEOUT", 1.0)
    return lambda only_failed=False: Recordings(api, run, OutputFolder(str(folder), "inv"), only_failed=only_failed)


@pytest.fixture
def over(server: FaultServer, api: AnchorAPI, run: Run) -> Callable[..., Record]:
    """A session that is over, and that tests with these outcomes have had."""

    def over(nonce: str = "inv-1", *outcomes: str) -> Record:
        session_id = opened(server, api, run, nonce)
        for number, outcome in enumerate(outcomes):
            run.append("tested", nonce, test=f"t.py::{number}", began=number, ended=number, outcome=outcome)
        run.append("ended", nonce, ended_by="test", already=False)
        server.end(session_id)
        return run.known(nonce)

    return over


def finish(recordings: Recordings) -> list[tuple[str, bool]]:
    recordings.wait(lambda: True)
    return list(recordings.lines("results"))


def files(folder: Path) -> list[str]:
    """The names of what is in the folder's folders, one of which may just be removed."""
    return sorted(name for parent, _, names in os.walk(folder) if Path(parent) != folder for name in names)


def test_a_recording_is_kept_and_on_record(make, over, server: FaultServer, folder: Path):
    server.fail("RECORDING", *[faults.status(404)] * 3)  # it is not there yet
    recordings, record = make(), over("inv-1", "passed")
    recordings.fetch([record])
    recordings.fetch([record])  # once is enough
    assert finish(recordings) == [("1 of 1 recording kept in results", False)]
    (path,) = folder.glob("*/*")
    assert path.read_bytes() == MP4
    assert list(record.evidence.values()) == [("recording", str(path), "t.py::0")]
    asked_for = [name for name, _ in server.asked_for_evidence]
    assert asked_for == ["RECORDING"] * 4 + ["FILE"]


def test_only_those_of_failed_tests_are_kept_where_that_is_asked_for(make, over, folder: Path):
    recordings = make(only_failed=True)
    outcomes = {"passed": ["passed"], "failed": ["passed", "failed"], "error": ["error"], "skipped": ["xfailed"]}
    recordings.fetch([over(f"inv-{name}", *those) for name, those in outcomes.items()])
    assert finish(recordings) == [("2 of 2 recordings kept in results", False)]
    names = [one.name for one in folder.iterdir() if one.is_dir()]
    assert sorted(name.rpartition("-")[0] for name in names) == ["t.py-0", "t.py-0-and-1-more"]


def test_that_of_a_session_that_runs_is_not_asked_for(make, server: FaultServer, api: AnchorAPI, run: Run):
    opened(server, api, run, "inv-1")
    recordings = make()
    recordings.fetch([run.known("inv-1")])
    assert finish(recordings) == []
    assert not server.asked_for_evidence


BAD_WAYS = {
    "401": (faults.status(401), "HTTP 401"),
    "403": (faults.status(403, "these words"), "these words"),
    "404": (faults.status(404), "HTTP 404"),
    "429": (faults.status(429, Retry_After="30"), ""),
    "500": (faults.status(500), ""),
    "redirect elsewhere": (faults.body(b"", 302, Location="http://192.0.2.1/x"), "to where no file is fetched from"),
    "redirect nowhere": (faults.body(b"", 302), ""),
    "file": (faults.body(b"", 302, Location="file:///etc/passwd"), "to where no file is fetched from"),
    "no MP4": (faults.body(b"<html>" * 99), "an answer that is not an MP4"),
    "nothing": (faults.body(b""), "an answer that is not an MP4"),
    "reset": (faults.reset, ""),
    "never": (faults.silent, "no"),
    "slowly": (faults.trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + MP4), ""),
}


@pytest.mark.parametrize("way", BAD_WAYS)
def test_a_bad_answer_is_a_line_and_leaves_nothing(make, over, server: FaultServer, folder: Path, way: str):
    fault, words = BAD_WAYS[way]
    server.fail_always("RECORDING", fault)
    recordings = make()
    before = time.monotonic()
    recordings.fetch([over()])
    ((text, is_trouble),) = finish(recordings)
    assert time.monotonic() - before < 10
    assert text.startswith("0 of 1 recording kept in results; of the others: ")
    assert words in text
    assert is_trouble
    until(lambda: not files(folder), 5)


def test_an_api_that_fails_is_not_waited_for_to_the_end(
    make, over, server: FaultServer, monkeypatch: pytest.MonkeyPatch
):
    recordings = make()
    monkeypatch.setattr(module, "TIMEOUT", 60.0)
    monkeypatch.setattr("pytest_anchor.api.caller.BACKOFF", 0.01)
    server.fail_always("RECORDING", faults.status(500, "it could not be made"))
    before = time.monotonic()
    recordings.fetch([over()])
    assert "it could not be made" in finish(recordings)[0][0]
    assert time.monotonic() - before < 20


def test_of_a_file_that_is_too_large_nothing_is_left(
    make, over, server: FaultServer, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pytest_anchor.api.endpoints.MAX_RECORDING", 1000)
    server.fail_always("FILE", faults.body(MP4 + bytes(2000)))
    recordings = make()
    recordings.fetch([over()])
    assert "an answer of more than 1000 bytes" in finish(recordings)[0][0]
    assert files(folder) == []


def test_what_comes_too_late_leaves_nothing(make, over, folder: Path, monkeypatch: pytest.MonkeyPatch):
    recordings, new_file = make(), OutputFolder.new_file

    @contextmanager
    def late(*args: str) -> Iterator[object]:
        with new_file(*args) as made:
            assert files(folder)
            recordings.wait(lambda: False)
            yield made

    monkeypatch.setattr(OutputFolder, "new_file", late)
    recordings.fetch([over()])
    until(lambda: recordings._is_over, 5)
    until(lambda: not files(folder), 5)


def test_a_session_id_is_checked(api: AnchorAPI, server: FaultServer):
    for bad in ("all", "../all", ""):
        with pytest.raises(AnchorAPIError, match="not a session id"):
            api.recording(bad, io.BytesIO(), deadline=time.monotonic() + 5)
        with pytest.raises(AnchorAPIError, match="not a session id"):
            api.screenshot(bad, deadline=time.monotonic() + 5)
    assert not server.asked_for_evidence


@pytest.fixture
def suite(suite: Suite) -> Suite:
    suite.write("""
def test_passes(anchor_session): anchor_session()
def test_fails(anchor_session): anchor_session(browser={"adblock": {"active": True}}); assert False
def test_shared(session_anchor_session): session_anchor_session()
def test_shares(session_anchor_session): assert False
""")
    return suite


def test_a_run_waits_for_its_recordings(suite: Suite, server: FaultServer):
    server.fail("RECORDING", faults.status(404))
    run = suite.run_here("--anchor-recording=retain-on-failure")
    assert (run.status, run.alive) == (1, [])
    folder = suite.folder / "anchor-results"
    assert f"2 of 2 recordings kept in {folder}" in run.section
    names = [path.parent.name.rpartition("-")[0] for path in folder.glob("*/recording-1.mp4")]
    assert sorted(names) == ["test_it.py-test_fails", "test_it.py-test_shared-and-1-more"]
    assert run.out.count("\nrecording: http://127.0.0.1:") == 2
