from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import BrowserContext, Page, expect


@pytest.fixture(autouse=True)
def shop(page: Page) -> None:
    page.goto("/")


def add(page: Page, tea: str, bags: int) -> None:
    page.get_by_label("Tea").select_option(tea)
    page.get_by_label("Bags").fill(str(bags))
    page.get_by_role("button", name="Add").click()


def test_shop_opens(page: Page) -> None:
    expect(page).to_have_title("The Tea Shop")
    expect(page.get_by_label("Your basket")).to_have_text("empty")


@pytest.mark.parametrize(
    ("tea", "bags", "total"),
    [("Assam", 1, "4.50"), ("Assam", 3, "13.50"), ("Darjeeling", 2, "14.00")],
)
def test_basket_shows_the_total(page: Page, tea: str, bags: int, total: str) -> None:
    add(page, tea, bags)
    expect(page.get_by_label("Your basket")).to_have_text(f"€ {total}")


def test_each_visitor_has_a_basket(page: Page, new_context: Callable[[], BrowserContext]) -> None:
    add(page, "Assam", 2)
    expect(page.get_by_label("Your basket")).to_have_text("€ 9.00")
    page.reload()
    expect(page.get_by_label("Your basket")).to_have_text("€ 9.00")

    other = new_context().new_page()
    other.goto("/")
    expect(other.get_by_label("Your basket")).to_have_text("empty")


def test_invoice_is_downloaded(page: Page) -> None:
    add(page, "Darjeeling", 1)
    with page.expect_download() as download:
        page.get_by_role("link", name="Invoice").click()
    assert download.value.suggested_filename == "invoice.csv"
    assert download.value.path().read_text() == "tea,bags,euros\nDarjeeling,1,7.00"


def test_wide_windows_show_the_links(page: Page) -> None:
    expect(page.get_by_role("link", name="Chat with us")).to_be_visible()
    expect(page.get_by_role("button", name="Menu")).to_be_hidden()


@pytest.mark.browser_context_args(viewport={"width": 800, "height": 600})
def test_small_windows_show_a_menu(page: Page) -> None:
    expect(page.get_by_role("link", name="Chat with us")).to_be_hidden()
    expect(page.get_by_role("button", name="Menu")).to_be_visible()
