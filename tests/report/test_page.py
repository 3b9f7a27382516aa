"""The page as text: what the tests and the API call things is shown, and is nothing else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from html.parser import HTMLParser

import pytest
from pictures import BEGAN, ERROR, RecordedRun, busy

from pytest_anchor.report import images
from pytest_anchor.report.document import document_of
from pytest_anchor.report.images import PNG
from pytest_anchor.report.model import picture_of
from pytest_anchor.report.page import MOST_FAILURES, duration, page_of

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg/onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "a\u2028b\u202egnp.exe",
    "\ud800 \x00 \x1b[2J",
    "]]>&lt;/style>",
    "x" * 100_000,
]


class Elements(HTMLParser):
    """What a browser makes of a page, roughly."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._open = tag if tag in ("script", "style") else ""

    def handle_data(self, data):
        if self._open and self._open not in self.text:
            self.text[self._open] = data


def page(run: RecordedRun, status: str = "finished", images: Mapping[str, str] = {}) -> str:
    return page_of(document_of(picture_of(run.state, status, BEGAN + 100), "/ci"), "0.1.0", images)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_text(name: str):
    run = RecordedRun()
    run.tested(name, 0, 5, run.session(name, 0, 1, owner=name[:60]), outcome="failed")
    made = page(run)
    made.encode()  # a lone surrogate cannot be
    harmless, hostile = Elements(page(_plain())), Elements(made)
    assert [tag for tag, _ in hostile.found] == [tag for tag, _ in harmless.found]
    assert not [key for _, attrs in hostile.found for key in attrs if key.startswith("on")]
    data = json.loads(hostile.text["script"])
    shown = data["tests"]["rows"][0][0]
    assert shown.isprintable()
    assert len(shown) <= 500
    if name.isprintable() and len(name) < 500:
        assert shown == name


def _plain() -> RecordedRun:
    run = RecordedRun()
    run.tested("plain", 0, 5, run.session("plain", 0, 1), outcome="failed")
    return run


def test_nothing_is_loaded_and_nothing_else_runs():
    made = page(busy(12, 3))
    elements = Elements(made).found
    (policy,) = [attrs["content"] for tag, attrs in elements if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not [
        attrs
        for _, attrs in elements
        if any(name in attrs for name in ("src", "href", "style")) and attrs.get("href") != "#timeline"
    ]
    assert not re.search(r"https?:", made)


def test_ids_are_there_only_where_a_session_may_run():
    run = RecordedRun()
    run.session("over", 0, 1, 4, 5)
    run.session("leaked", 0, 1)
    made = page(run)
    assert "session-1" not in made
    assert "python -m pytest_anchor end --base-url http://b session-2" in made
    assert "1 session not confirmed to be over" in made


def test_a_session_that_is_kept_has_not_leaked():
    run = RecordedRun()
    nonce = run.session("kept", 0, 1)
    run.note("kept", nonce, 5, until=BEGAN + 900)
    made = page(run)
    assert "1 session is kept open for a while" in made
    assert "session-1" not in made
    assert "not confirmed to be over" not in made


def test_a_run_that_goes_on_has_leaked_nothing():
    run = RecordedRun()
    run.session("a", 0, 1)
    made = page(run, "running")
    assert "not confirmed to be over" not in made
    assert '<strong class="badge running">running</strong>' in made


def test_what_the_run_came_to():
    run = RecordedRun(cap=5, prefetch=2, end_in_background=True)
    nonce = run.session("a", 5, 6, 8, 9, retried=1)
    run.waited(nonce, 5, rate=3, slot=1.5, elsewhere=1, quota=20, window=10)
    run.tested("a", 0.5, 9, nonce, outcome="error")
    run.note("lost", run.ask("b", 1), 3, error=ERROR)
    made = re.sub(r"\s+", " ", page(run, "killed"))
    for words in (
        "1 test in 1 session, 1 failed",
        "killed</strong>",
        "--anchor-prefetch 2 --anchor-end background",
        "1 creation waited 3.0 s for the plan&#39;s rate limit: 20 creations in 10 s",
        "1 creation waited 1.5 s for a free browser slot: 5 at once",
        "1 creation waited 1.0 s for runs on other machines",
        "1 creation was retried",
        "at most 1 at once, 5 allowed",
        "a creation whose answer never came",
    ):
        assert words in made


def test_of_many_failures_some_are_written_out():
    run = RecordedRun()
    for number in range(MOST_FAILURES + 7):
        run.tested(
            f"t{number}",
            number,
            number + 1,
            run.session(f"t{number}", number, number, number + 1, number + 1),
            outcome="failed",
        )
    made = page(run)
    assert made.count("Show in the timeline</button>") == MOST_FAILURES
    assert "7 more are in the table of tests." in made


def test_a_record_with_nothing_in_it():
    assert "0 tests in 0 sessions" in page(RecordedRun())


def test_a_run_that_lasted_for_ages_has_a_page():
    run = RecordedRun()
    run.session("a", 0, 9e10)
    page(run)


def test_screenshots_and_recordings_of_failures():
    run = RecordedRun()
    for name, outcome in (("good", "passed"), ("bad", "failed")):
        nonce = run.session(name, 0, 1, 4, 5)
        for number in (1, 2):
            run.note("evidence", nonce, 3, kind="screenshot", path=f"/ci/{name}/{number}.png", test=name)
        run.note("evidence", nonce, 6, kind="recording", path=f'/ci/{name}/"><b>.mp4', test=name)
        run.tested(name, 0, 5, nonce, outcome=outcome)
    run.note("evidence", nonce, 3, kind="screenshot", path="/ci/other.png", test="another")
    elements = Elements(page(run, images={"bad/1.png": "data:image/png;base64,AAAA"})).found
    assert [attrs["src"] for tag, attrs in elements if tag == "img"] == ["data:image/png;base64,AAAA"]
    assert [attrs["href"] for tag, attrs in elements if tag == "a"][1:] == ["./bad/2.png", "./bad/%22%3E%3Cb%3E.mp4"]


@pytest.mark.parametrize("image", ["there", "none", "a pipe", "a link", "another kind", "too large"])
def test_images_within_bounds(tmp_path, image, monkeypatch):
    path = tmp_path / "1.png"
    if image == "a pipe":
        os.mkfifo(path)
    elif image == "a link":
        (tmp_path / "other").write_bytes(PNG)
        path.symlink_to("other")
    elif image != "none":
        path.write_bytes(b"GIF89a" if image == "another kind" else PNG + b"x" * 100)
        monkeypatch.setattr(images, "MOST_OF_ONE", 50 if image == "too large" else 1000)
    assert list(images.embedded(["1.png"], tmp_path)) == (["1.png"] if image == "there" else [])


def test_images_within_bounds_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MOST_OF_ALL", 250)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(PNG + b"x" * 100)
    assert list(images.embedded([f"{number}.png" for number in range(3)], tmp_path)) == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (4.25, "4.2 s"),
        (9.96, "10.0 s"),
        (41.4, "41 s"),
        (119, "119 s"),
        (125.4, "2 min 5 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
