"""A session that is over before its test is."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from pytest_anchor import AnchorSession, AnchorSessionFactory


def test_basket_is_not_kept(anchor_session: AnchorSessionFactory, open_page: Callable[[AnchorSession], Page]) -> None:
    with anchor_session() as yesterday:
        page = open_page(yesterday)
        page.get_by_role("button", name="Add").click()
        expect(page.get_by_label("Your basket")).to_have_text("€ 4.50")

    with anchor_session() as today:
        expect(open_page(today).get_by_label("Your basket")).to_have_text("empty")
