"""One browser for all tests of a module: quicker and cheaper, for tests that leave nothing behind.

pytest-xdist's `--dist loadscope` keeps a module's tests on one worker, and so on one session.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from pytest_anchor import AnchorSession, AnchorSessionFactory


@pytest.fixture(scope="module")
def shared_session(module_anchor_session: AnchorSessionFactory) -> AnchorSession:
    return module_anchor_session(session={"tags": ["shared"]})


@pytest.fixture
def page(shared_session: AnchorSession, open_page: Callable[[AnchorSession], Page]) -> Page:
    return open_page(shared_session)


@pytest.mark.parametrize("tea", ["Assam", "Darjeeling"])
def test_tea_is_sold(page: Page, tea: str) -> None:
    expect(page.get_by_label("Tea").get_by_role("option", name=tea)).to_have_count(1)


def test_bags_start_at_one(page: Page) -> None:
    expect(page.get_by_label("Bags")).to_have_value("1")
