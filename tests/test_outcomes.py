"""What is on record of the tests that had sessions."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from real_runs import BROKEN, Suite

from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.records import Record

# A conftest.py that keeps the record of a run, which is removed when all is over.
KEEP = """
import shutil
from pathlib import Path
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        (folder,) = filter(Path.is_dir, Path(".pytest_anchor").iterdir())
        shutil.copytree(folder, "kept", ignore=shutil.ignore_patterns("*.lock"))
    return (yield)
"""


@pytest.fixture
def suite(suite: Suite) -> Suite:
    suite.write(KEEP, "conftest.py")
    return suite


@pytest.fixture
def tested(suite: Suite) -> Callable[..., list[tuple[str, list[tuple[str, str, int]]]]]:
    """Run a test file, and return of each session the test that asked for it, and those that had it."""

    def tested(text: str, *args: str) -> list[tuple[str, list[tuple[str, str, int]]]]:
        suite.write(text)
        suite.run_here(*args)
        return [
            (
                record.test.removeprefix("test_it.py::"),
                [(one.test.removeprefix("test_it.py::"), one.outcome, one.rerun) for one in record.tests.values()],
            )
            for record in records(suite)
        ]

    return tested


def records(suite: Suite) -> list[Record]:
    return list(Run(suite.folder / "kept").read().records.values())


ENDS = (
    BROKEN
    + """
def test_passes(anchor_session): anchor_session().end()
def test_fails(anchor_session): anchor_session(); assert False
def test_skips(anchor_session): anchor_session(); pytest.skip()
@pytest.mark.xfail
def test_xfails(anchor_session): anchor_session(); assert False
@pytest.mark.xfail
def test_xpasses(anchor_session): anchor_session()
@pytest.mark.xfail(strict=True)
def test_is_strict(anchor_session): anchor_session()
def test_setup(broken_setup): pass
def test_teardown(broken_teardown): pass
def test_both(broken_teardown): assert False
def test_none(anchor_session): pass
"""
)


def test_every_outcome_is_on_record(tested: Callable[..., object]):
    outcomes = {
        "passes": "passed",
        "fails": "failed",
        "skips": "skipped",
        "xfails": "xfailed",
        "xpasses": "xpassed",
        "is_strict": "failed",
        "setup": "error",
        "teardown": "error",
        "both": "failed",
    }
    expected = [(f"test_{name}", [(f"test_{name}", outcome, 0)]) for name, outcome in outcomes.items()]
    assert tested(ENDS) == expected


WIDER = """
import pytest

@pytest.fixture(scope="module")
def shared(module_anchor_session):
    return module_anchor_session()

def test_a(shared): pass
def test_b(): pass
def test_c(shared, session_anchor_session): session_anchor_session()
def test_d(module_anchor_session): module_anchor_session().end()
def test_e(session_anchor_session, shared): shared.end()
def test_f(shared): pass
"""


def test_a_shared_session_has_each_test_that_requested_it_while_it_was_open(tested: Callable[..., object]):
    assert tested(WIDER) == [
        ("test_a", [(f"test_{name}", "passed", 0) for name in "acde"]),
        ("test_c", [("test_c", "passed", 0), ("test_e", "passed", 0)]),
        ("test_d", [("test_d", "passed", 0)]),
    ]


def test_each_run_of_a_test_that_is_repeated_counts(tested: Callable[..., object]):
    text = """
runs = []

def test_a(anchor_session):
    anchor_session()
    runs.append(1)
    assert len(runs) == 3
"""
    assert tested(text, "-p", "pytest_rerunfailures", "--reruns=5") == [
        ("test_a", [("test_a", "failed", 0)]),
        ("test_a", [("test_a", "failed", 1)]),
        ("test_a", [("test_a", "passed", 2)]),
    ]


FROZEN = """
import time
import unittest.mock

def test_a(anchor_session):
    anchor_session()
    time.sleep(0.3)
    unittest.mock.patch.multiple("time", time=lambda: 0, monotonic=lambda: 0, perf_counter=lambda: 0).start()

def test_b(anchor_session):
    unittest.mock.patch.stopall()
"""


def test_times_are_the_brokers_whatever_a_test_makes_of_its_clock(tested: Callable[..., object], suite: Suite):
    before = time.time()
    tested(FROZEN)
    (record,) = records(suite)
    (one,) = record.tests.values()
    assert before - 0.1 <= one.began <= one.ended - 0.25 <= time.time()
    assert record.created_at is not None
    assert record.ended_at is not None
    assert one.began <= record.created_at <= record.ended_at <= one.ended
