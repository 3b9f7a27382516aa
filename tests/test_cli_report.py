"""``python -m pytest_anchor report``: the picture of a run that is on record."""

import json
import os
from pathlib import Path

import pytest
from records import intend, journal

from pytest_anchor.__main__ import main

pytest_plugins = "command_fixtures"


def document(name="run.json"):
    return json.loads(Path(name).read_text())


def test_the_latest_run(registry, dead, live, capsys):
    intend(dead, "dead-1", test="of the dead")
    intend(live, "live-1", test="of the living")
    os.utime(journal(dead), (1, 1))
    assert main(["report", "-o", "run.json"]) == 0
    assert capsys.readouterr().out == "run.json: 0 sessions of run live, which goes on\n"
    assert (document()["run"]["status"], document()["sessions"][0]["test"]) == ("running", "of the living")
    os.utime(journal(live), (0, 0))
    assert main(["report", "-o", "run.json"]) == 0
    assert (document()["run"]["status"], document()["sessions"][0]["test"]) == ("killed", "of the dead")


def test_a_run_by_the_beginning_of_its_name(registry, dead, live, capsys):
    intend(dead, "dead-1", test="of the dead")
    intend(live, "live-1")
    assert main(["report", "de", "-o", "run.json", "--registry", str(registry)]) == 0
    assert document()["sessions"][0]["test"] == "of the dead"


def test_a_page_beside_it_by_default(dead, tmp_path, capsys):
    intend(dead, "dead-1")
    assert main(["report"]) == 0
    assert "t.py::x" in (tmp_path / "anchor-report.html").read_text()


def test_a_file_whose_name_is_only_an_ending(dead):
    intend(dead, "dead-1")
    assert main(["report", "-o", ".json"]) == 0
    assert len(document(".json")["sessions"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nobody"], "No run whose name begins with 'nobody' is on record in "),
        (["--registry", "nowhere"], "No run is on record: there is no nowhere"),
        (["-o", ""], "--output takes a file whose name ends in .html or .json"),
        (["-o", "run.pdf"], "--output takes a file whose name ends in .html or .json, not 'run.pdf'"),
    ],
)
def test_what_cannot_be_drawn(dead, capsys, arguments, words):
    intend(dead, "dead-1")
    assert main(["report", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_no_registry(environment, capsys):
    assert main(["report"]) == 2
    assert "--anchor-report FILE" in capsys.readouterr().err


def test_a_file_that_cannot_be_written(dead, tmp_path, capsys):
    intend(dead, "dead-1")
    (tmp_path / "run.json").mkdir()
    assert main(["report", "-o", "run.json"]) == 2
    assert "directory" in capsys.readouterr().err


def test_a_registry_that_cannot_be_trusted(untrusted, capsys):
    assert main(["report"]) == 2
    assert "cannot be used" in capsys.readouterr().err


def test_nothing_is_changed(dead, registry, capsys):
    intend(dead, "dead-1")
    before = journal(dead).read_bytes()
    assert main(["report", "-o", "run.json"]) == 0
    assert journal(dead).read_bytes() == before
