"""Runs on two of pytest-xdist's workers, each with several things that could leave a session: none does, none hangs."""

from __future__ import annotations

import os
import signal

import pytest
from backend import until
from switched import ASYNC, DEADLINE, Suite

pytestmark = pytest.mark.slow

TESTS = """
    import os

    import pytest

    tries = []

    @pytest.mark.xdist_group("one")
    @pytest.mark.repeat(2)
    def test_repeated(page):
        assert page.title() == ""

    @pytest.mark.xdist_group("other")
    @pytest.mark.flaky(reruns=1)
    def test_flaky(page):
        tries.append(page.title())
        assert len(tries) == 2

    @pytest.mark.xdist_group("other")
    @pytest.mark.skipif("ENDS_BY" not in os.environ, reason="all goes well")
    def test_ends(page):
        if os.environ["ENDS_BY"] == "crash" and not os.path.exists("crashed"):
            open("crashed", "w").close()
            os._exit(3)
        assert page.title() == ("another" if os.environ["ENDS_BY"] == "failure" else "")
"""
MORE = """
    def test_more(page):
        assert page.title() == ""
"""
AHEAD = ("--anchor-prefetch", "1", "--anchor-end", "background")
TWO = ("-n", "2")
NOT_REPEATED = ("-k", "not repeated")
WELL = {"passed": 4, "rerun": 1, "skipped": 1}
CRASH = {"passed": 3, "rerun": 1, "failed": 1}  # by scope or file, pytest-xdist runs the test again that crashed


@pytest.mark.parametrize(
    ("mode", "distribution", "options", "ends_by", "outcomes"),
    [
        ("worker", "load", (*TWO, "--anchor-end", "background"), "", WELL),
        ("test", "loadscope", (*TWO, *AHEAD, *NOT_REPEATED), "crash", CRASH),
        ("worker", "loadfile", (*TWO, *AHEAD, *NOT_REPEATED), "crash", CRASH),
        ("test", "loadgroup", (*TWO, *AHEAD), "", WELL),
        ("test", "worksteal", (*TWO, *AHEAD, "-x", "-k", "not flaky"), "failure", None),
        ("worker", "each", TWO, "", {name: 2 * number for name, number in WELL.items()}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_distribution(
    suite: Suite,
    mode: str,
    distribution: str,
    options: tuple[str, ...],
    ends_by: str,
    outcomes: dict[str, int] | None,
):
    if ends_by:
        suite.more_env["ENDS_BY"] = ends_by
    suite.write(TESTS)
    suite.write(MORE, "test_more.py")
    plugins = ("-p", "xdist", "-p", "pytest_rerunfailures", "-p", "pytest_repeat")
    run = suite.run_process(mode, *plugins, "--dist", distribution, *options)
    if outcomes is None:
        assert run.status == pytest.ExitCode.INTERRUPTED, run.out  # as with -x on workers
        assert "1 failed" in run.out
    else:
        assert run.outcomes == outcomes, run.out
    assert "leaked" not in run.out


WAITS = """
    async def test_waits(page):
        await page.set_content("waits")
        open("waits", "w").close()
        await page.wait_for_selector("#never", timeout=600_000)

    async def test_waits_too(page):
        await page.set_content("waits")
        open("waits_too", "w").close()
        await page.wait_for_selector("#never", timeout=600_000)
"""


def test_ctrl_c(suite: Suite):
    suite.write(WAITS)
    process = suite.start("test", "-p", "xdist", *TWO, *AHEAD, plugins=ASYNC)
    until(lambda: len(list(suite.folder.glob("waits*"))) == 2, DEADLINE)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out + err
    assert not suite.alive
