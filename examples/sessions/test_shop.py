from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect


def test_shop_opens(page: Page) -> None:
    expect(page).to_have_title("The Tea Shop")
    expect(page.get_by_label("Your basket")).to_have_text("empty")


@pytest.mark.parametrize(
    ("tea", "bags", "total"),
    [("Assam", 1, "€ 4.50"), ("Assam", 3, "€ 13.50"), ("Darjeeling", 2, "€ 14.00")],
)
def test_basket_shows_the_total(page: Page, tea: str, bags: int, total: str) -> None:
    page.get_by_label("Tea").select_option(tea)
    page.get_by_label("Bags").fill(str(bags))
    page.get_by_role("button", name="Add").click()

    expect(page.get_by_label("Your basket")).to_have_text(total)


def test_wide_windows_show_the_links(page: Page) -> None:
    expect(page.get_by_role("link", name="Chat with us")).to_be_visible()
    expect(page.get_by_role("button", name="Menu")).to_be_hidden()


@pytest.mark.anchor(browser={"viewport": {"width": 800, "height": 600}})
def test_small_windows_show_a_menu(page: Page) -> None:
    expect(page.get_by_role("link", name="Chat with us")).to_be_hidden()
    expect(page.get_by_role("button", name="Menu")).to_be_visible()
