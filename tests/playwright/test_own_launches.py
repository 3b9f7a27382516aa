"""Suites that start Playwright themselves, without pytest-playwright: their launches become sessions."""

from __future__ import annotations

import pytest
from switched import Suite

pytestmark = pytest.mark.slow

LAUNCHES = """
import asyncio
import unittest

import pytest
from playwright.async_api import async_playwright
from playwright.sync_api import sync_playwright
from pytest_anchor import AnchorConfigError


def title(browser):
    page = browser.new_page()
    page.set_content("<title>hello</title>")
    return page.title()


def test_with_block():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(headless=True, args=["--no-sandbox"])
        assert title(browser) == "hello"
        browser.close()
        browser.close()


def test_left_open():
    with sync_playwright() as playwright:
        assert title(playwright.chromium.launch()) == "hello"


def test_asyncio():
    async def work():
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch()
            page = await browser.new_page()
            assert await page.evaluate("1 + 1") == 2
            await browser.close()

    asyncio.run(work())


@pytest.fixture(scope="class")
def playwright():
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="class")
def browser(playwright):
    browser = playwright.chromium.launch()
    yield browser
    browser.close()


class TestShared:
    @pytest.mark.parametrize("number", range(2))
    def test_fixture(self, browser, number):
        assert title(browser) == "hello"

    def test_profile(self, playwright, tmp_path):
        with pytest.raises(AnchorConfigError, match="use launch.* and new_context"):
            playwright.chromium.launch_persistent_context(tmp_path)

    def test_firefox(self, playwright):
        playwright.firefox.launch()


class TestCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.playwright = sync_playwright().start()
        cls.browser = cls.playwright.chromium.launch()

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.playwright.stop()

    def test_one(self):
        assert title(self.browser) == "hello"

    def test_two(self):
        assert title(self.browser) == "hello"
"""


def test_launches_are_sessions(suite: Suite):
    suite.write(LAUNCHES)
    before = len(suite.listed)
    run = suite.run("worker", "-rs", plugins=())
    assert run.outcomes == {"passed": 8, "skipped": 1}, run.out
    assert "firefox was asked for, and Anchor's browsers are Chromium" in run.out
    assert len(suite.listed) - before == 3
