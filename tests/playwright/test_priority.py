"""Whose fixtures count: those of a conftest.py and its helpers before the switch's, and these before the plugin's."""

from __future__ import annotations

import pytest
from switched import Suite

pytestmark = pytest.mark.slow

OWN = """
import pytest

@pytest.fixture(scope="session")
def browser():
    return "the suite's own"
"""
TEST = """
def test_it(browser):
    assert browser == "the suite's own"
"""
LATE = ("-n", "1", "-p", "xdist")


@pytest.mark.parametrize(
    ("mode", "workers", "place"),
    [("worker", (), "conftest"), ("test", (), "helper"), ("test", LATE, "helper")],
)
def test_a_suites_own_browser_counts(suite: Suite, mode: str, workers: tuple[str, ...], place: str):
    suite.write(TEST)
    suite.write(OWN, f"{place}.py")
    if place == "helper":
        suite.write('pytest_plugins = ["helper"]', "conftest.py")
    suite.more_env["PYTHONPATH"] += f":{suite.folder}"
    before = len(suite.listed)
    run = (suite.run_process if workers or place == "helper" else suite.run)(mode, *workers)
    assert run.outcomes == {"passed": 1}, run.out
    assert len(suite.listed) == before


@pytest.mark.parametrize("workers", [(), LATE], ids=["here", "xdist"])
def test_a_suites_own_launch_browser_counts(suite: Suite, workers: tuple[str, ...]):
    suite.write(
        """
        import pytest

        @pytest.fixture(scope="session")
        def launch_browser(browser_type):
            def launch():
                browser = browser_type.launch()
                browser.mine = True
                return browser
            return launch
    """,
        "conftest.py",
    )
    suite.write("""
        def test_it(browser, page):
            assert browser.mine
            assert page.title() == ""
    """)
    before = len(suite.listed)
    run = suite.run_process("test", *workers)
    assert run.outcomes == {"passed": 1}, run.out
    assert len(suite.listed) - before == 1


def test_pytest_playwright_is_named_by_a_conftest(suite: Suite):
    suite.write(
        """
        import pytest

        pytest_plugins = ["pytest_playwright.pytest_playwright"]

        @pytest.fixture(scope="session")
        def base_url():  # pytest-playwright's own is missing then
            return None
    """,
        "conftest.py",
    )
    suite.write("def test_it(page, browser): assert len(browser.contexts) == 2")
    run = suite.run_process("test", plugins=())
    assert run.outcomes == {"passed": 1}, run.out
