"""What other options would have made of a run."""

from __future__ import annotations

import pytest
from pictures import BEGAN, RecordedRun, one_after_the_other

from pytest_anchor.report.estimates import estimates
from pytest_anchor.report.model import picture_of


def estimated(run: RecordedRun, status: str = "finished") -> dict[str, float]:
    """How long the run would have taken, by the options."""
    return {one.options: one.seconds for one in estimates(picture_of(run.state, status, BEGAN))}


def test_prefetch_takes_creations_out_of_the_tests_way():
    # 30 times 1 s, 0.5 s and 0.3 s; with one ahead, a creation takes as long as the test and the end before it and more.
    found = estimated(one_after_the_other(30, create=0.4, work=0.5, end=0.3))
    assert found["--anchor-prefetch 1"] == pytest.approx(0.4 + 30 * 0.8, abs=0.1)


def test_a_second_one_ahead_where_one_is_not_enough():
    found = estimated(one_after_the_other(30, create=1.0, work=0.5, end=0.0))
    assert list(found) == ["--anchor-prefetch 2"]
    assert found["--anchor-prefetch 2"] == pytest.approx(1 + 0.5 + 30 * 0.5, abs=0.1)  # the second test waits, too


def test_ends_in_the_background():
    found = estimated(one_after_the_other(10, create=0.0, work=1.0, end=0.5))
    assert found == {"--anchor-end background": pytest.approx(10.0, abs=0.1)}


def test_both():
    found = estimated(one_after_the_other(10, create=0.8, work=1.0, end=0.5))
    assert next(iter(found)) == "--anchor-prefetch 1 --anchor-end background"
    assert found["--anchor-prefetch 1 --anchor-end background"] == pytest.approx(10.8, abs=0.1)


def test_what_is_on_already_is_not_advised():
    run = one_after_the_other(10, create=0.8, work=1.0, end=0.5)
    run.note("run", "", 0, cap=0, prefetch=8, end_in_background=True)
    assert estimated(run) == {}


@pytest.mark.parametrize(("cap", "workers", "seconds"), [(8, 8, 4.5), (3, 3, 12.0), (4, 4, 9.0)])
def test_as_many_workers_as_the_plan_allows(cap, workers, seconds):
    found = estimated(one_after_the_other(16, create=1.0, work=1.0, end=0.25, workers=2, cap=cap))
    assert found[f"-n {workers}"] == pytest.approx(seconds, rel=0.15)


def test_the_plan_is_used_up():
    found = estimated(one_after_the_other(16, workers=4, cap=4))
    assert not any(options.startswith("-n") for options in found)


def test_no_more_workers_than_tests_have_a_use_for():
    found = estimated(one_after_the_other(8, workers=2, cap=100))
    assert [options for options in found if options.startswith("-n")][-1] == "-n 4"


def test_nothing_is_created_ahead_where_the_plan_has_no_room():
    assert estimated(one_after_the_other(10, end=0.0, cap=1)) == {}


def test_how_many_sessions_a_worker_has_counts():
    run = RecordedRun(cap=8)
    for number in range(16):
        at = 4.0 * number
        run.tested(
            "t",
            at,
            at + 4,
            run.session("t", at, at + 1, at + 4, at + 4),
            run.session("t", at + 1, at + 2, at + 4, at + 4),
        )
    assert "-n 4" in estimated(run)


def test_the_rate_limit_is_the_limit():
    """10 creations in 20 s, which the run has used up."""
    run = RecordedRun(cap=50)
    for number in range(40):
        at = 2.0 * number
        nonce = run.session(f"t{number}", at + 1, at + 1.2, at + 1.8, at + 2)
        run.waited(nonce, at + 1, rate=1.0, quota=10, window=20.0)
        run.tested(f"t{number}", at, at + 2, nonce)
    assert all(seconds > 55 for seconds in estimated(run).values())


def test_a_session_that_tests_share_is_created_by_each_worker():
    run = RecordedRun(cap=4)
    nonce = run.session("t0", 0, 10, 70, 71)
    for number in range(20):
        began = 3 * number + (10 if number else 0)
        run.tested(f"t{number}", began, 3 * number + 13, nonce)
    found = estimated(run)
    assert found["-n 4"] == pytest.approx(10 + 5 * 3, rel=0.15)
    assert not any("prefetch" in options for options in found)


def test_nothing_is_told_of_a_run_that_goes_on():
    assert estimated(one_after_the_other(30), "running") == {}


def test_nothing_is_told_of_what_saves_next_to_nothing():
    assert estimated(one_after_the_other(30, create=0.01, work=1.0, end=0.01)) == {}


def test_what_would_wait_for_itself_has_no_estimate():
    """A session created ahead takes the slot that the test before needs for its second one."""
    run = RecordedRun(cap=2)
    for number in range(4):
        at = 10.0 * number
        pair = [run.session(f"t{number}", at + later, at + later + 1, at + 9, at + 9) for later in (0, 1)]
        run.tested(f"t{number}", at, at + 10, *pair)
    assert estimated(run) == {}


def test_the_order_is_that_of_what_they_save():
    found = estimates(picture_of(one_after_the_other(30, create=1, work=1, end=0.5).state, "finished", BEGAN))
    assert [one.saved for one in found] == sorted((one.saved for one in found), reverse=True)
    assert all(one.seconds + one.saved == pytest.approx(75, abs=0.2) for one in found)
