"""Two browsers in one test."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from pytest_anchor import AnchorSession, AnchorSessionFactory


def test_two_people_talk(anchor_session: AnchorSessionFactory, open_page: Callable[[AnchorSession], Page]) -> None:
    ada = open_page(anchor_session())
    ben = open_page(anchor_session())
    for person in ada, ben:
        person.get_by_role("link", name="Chat with us").click()

    say(ada, "Is the Assam in?")
    expect(ben.get_by_role("listitem")).to_have_text(["Is the Assam in?"])

    say(ben, "Since this morning!")
    expect(ada.get_by_role("listitem")).to_have_text(["Is the Assam in?", "Since this morning!"])


def say(person: Page, message: str) -> None:
    person.get_by_label("Message").fill(message)
    person.get_by_role("button", name="Send").click()
