from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import BrowserContext, Page, expect


def test_two_people_talk(new_context: Callable[[], BrowserContext]) -> None:
    ada, ben = new_context().new_page(), new_context().new_page()
    for person in ada, ben:
        person.goto("/chat")

    say(ada, "Is the Assam in?")
    expect(ben.get_by_role("listitem")).to_have_text(["Is the Assam in?"])

    say(ben, "Since this morning!")
    expect(ada.get_by_role("listitem")).to_have_text(["Is the Assam in?", "Since this morning!"])


def say(person: Page, message: str) -> None:
    person.get_by_label("Message").fill(message)
    person.get_by_role("button", name="Send").click()
