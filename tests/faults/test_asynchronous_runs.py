"""``async_anchor_session`` under the plugins that run asynchronous tests, and under none."""

from __future__ import annotations

import pytest
from real_runs import Suite

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

CREATE = """
    first = await async_anchor_session(session={"tags": ["mine"]})
    async with await async_anchor_session():
        pass
    await first.aend()
    await async_anchor_session()
"""
SUMMARY = "3 sessions created: 2 ended by the tests, 1 at teardown"


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_with_pytest_asyncio(suite: Suite, mode: str):
    pytest.importorskip("pytest_asyncio")
    mark = "@pytest.mark.asyncio" if mode == "strict" else ""
    suite.write(f"import pytest\n{mark}\nasync def test_it(async_anchor_session):{CREATE}")
    ini = ["-o", f"asyncio_mode={mode}", "-o", "asyncio_default_fixture_loop_scope=function"]
    run = suite.run_here("-p", "pytest_asyncio.plugin", *ini)
    assert (run.status, run.outcomes, run.alive) == (0, {"passed": 1}, [])
    assert SUMMARY in run.section


def test_with_anyio(suite: Suite):
    pytest.importorskip("anyio")
    pytest.importorskip("trio")
    suite.write(f"import pytest\n@pytest.mark.anyio\nasync def test_it(async_anchor_session):{CREATE}")
    run = suite.run_here("-p", "anyio")
    assert (run.status, run.outcomes, run.alive) == (0, {"passed": 2}, [])
    assert "6 sessions created: 4 ended by the tests, 2 at teardown" in run.section


SHARED = """
import asyncio

def test_it(async_anchor_session, async_class_anchor_session, async_module_anchor_session, async_package_anchor_session,
            async_session_anchor_session, anchor_session):
    async def main():
        await async_anchor_session()
        await async_class_anchor_session()
        await async_module_anchor_session()
        await async_package_anchor_session()
        await async_session_anchor_session()
        await anchor_session().aend()
    asyncio.run(main())
"""


def test_without_a_plugin_and_at_each_scope(suite: Suite):
    suite.write(SHARED)
    run = suite.run_here()
    assert (run.status, run.outcomes, run.alive) == (0, {"passed": 1}, [])
    assert "6 sessions created: 1 ended by the tests, 5 at teardown" in run.section


def test_sigterm_ends_an_asynchronous_test_as_ctrl_c_does(suite: Suite):
    suite.write(
        "import asyncio, os, signal\n"
        "def test_it(async_anchor_session):\n"
        "    async def main():\n"
        "        await async_anchor_session()\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        await asyncio.sleep(20)\n"
        "    asyncio.run(main())\n"
    )
    run = suite.run_here()
    assert (run.status, run.alive) == (2, [])
    assert "1 session created: 1 at teardown" in run.section


def test_what_a_task_waits_for_is_said_on_the_terminal(suite: Suite):
    suite.write(
        "import asyncio\n"
        "def test_it(async_anchor_session):\n"
        "    async def hold(session):\n"
        "        async with session:\n"
        "            await asyncio.sleep(2.5)\n"
        "    async def main():\n"
        "        await asyncio.gather(hold(await async_anchor_session()), async_anchor_session())\n"
        "    asyncio.run(main())\n"
    )
    run = suite.run_here("--anchor-max-sessions", "1")
    assert (run.status, run.alive) == (0, [])
    assert "anchor: test_it.py::test_it waits for a session to end" in run.out
