"""Recordings: of a real session, read back by the decoder; and what becomes of one that cannot be made."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import requests
from backend import Backend, in_thread, until
from playwright.sync_api import Playwright

from pytest_anchor.local import recording as module
from pytest_anchor.local.encoder import Picture, encode
from pytest_anchor.local.recording import Recordings
from pytest_anchor.local.screen import Frame

RECORDED = {"recording": {"active": True}}


def opened(mp4: bytes | Path) -> Any:
    import av  # which no other test needs

    return av.open(io.BytesIO(mp4) if isinstance(mp4, bytes) else str(mp4))


def frames(mp4: bytes | Path) -> tuple[float, list[tuple[float, str]]]:
    """How long a video is, and which colour is in the middle of its pictures from when on."""
    with opened(mp4) as video:
        assert video.streams.video[0].codec_context.name == "h264"
        seen = [(float(frame.time), _colour(frame)) for frame in video.decode(video=0)]
        assert video.duration
        duration = video.duration / 1_000_000
    return duration, [each for i, each in enumerate(seen) if i == 0 or each[1] != seen[i - 1][1]]


def _colour(frame: Any, x: float = 0.5) -> str:
    rgb = frame.reformat(format="rgb24")
    plane = rgb.planes[0]
    start = (rgb.height // 2) * plane.line_size + int(rgb.width * x) * 3
    red, green, blue = (part > 90 for part in bytes(plane)[start : start + 3])
    return {(1, 1, 1): "white", (1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (0, 0, 0): "black"}[
        red, green, blue
    ]


def is_kept(backend: Backend, colour: str) -> bool:
    """Whether the newest picture of the session under way shows that colour."""
    (folder,) = (path for path in backend.profiles() if path.name.startswith("recording-"))
    newest = max(folder.glob("*.jpeg"), key=lambda path: int(path.stem), default=None)
    return newest is not None and newest.stat().st_size > 0 and _colour(next(opened(newest).decode(video=0))) == colour


def fetch(backend: Backend, session_id: str, **kwargs: Any) -> requests.Response:
    return backend("GET", f"/v1/sessions/{session_id}/recordings/primary/fetch", **kwargs)


def refusal(backend: Backend, session_id: str) -> tuple[int, str]:
    answer = fetch(backend, session_id)
    return answer.status_code, answer.json()["error"]["message"]


def test_a_session_is_recorded(chromium: Backend, playwright: Playwright):
    created = time.monotonic()
    made = chromium.create(
        session=RECORDED, browser={"headless": {"active": True}, "viewport": {"width": 641, "height": 480}}
    )
    browser = playwright.chromium.connect_over_cdp(made["cdp_url"])
    page = browser.contexts[0].pages[0]
    until(lambda: is_kept(chromium, "white"), every=0.1)
    began = time.monotonic()
    for colour, name in (("red", "red"), ("lime", "green")):
        page.set_content(f"<body style='background: {colour}'>")
        until(lambda name=name: is_kept(chromium, name), every=0.1)
        time.sleep(0.5)
    other = browser.new_context(viewport={"width": 200, "height": 300}).new_page()
    other.set_content("<body style='background: blue'>")
    until(lambda: is_kept(chromium, "blue"), every=0.1)
    status, message = refusal(chromium, made["id"])
    assert status == 404
    assert "not over yet" in message
    # The last moment counts most, and is not waited for.
    other.evaluate("document.body.style.background = 'red'")
    lasted = time.monotonic() - began
    chromium("DELETE", f"/v1/sessions/{made['id']}")
    ended = time.monotonic()
    browser.close()
    answer = until(
        lambda: (a := fetch(chromium, made["id"], allow_redirects=False)).status_code == 302 and a, within=20
    )
    mp4 = requests.get(answer.headers["Location"], timeout=20)
    assert mp4.headers["Content-Type"] == "video/mp4"

    duration, seen = frames(mp4.content)
    assert lasted <= duration <= ended - created
    colours = [colour for _, colour in seen if colour != "white"]
    assert colours == ["red", "green", "blue", "red"]
    times = {colour: when for when, colour in reversed(seen)}
    assert times["green"] - times["red"] >= 0.3
    with opened(mp4.content) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height) == (642, 480)
        last = list(video.decode(video=0))[-1]
        assert [_colour(last, x) for x in (0.1, 0.5, 0.9)] == ["black", "red", "black"]

    # Its address cannot be guessed, and is all that it takes.
    (item,) = chromium("GET", f"/v1/sessions/{made['id']}/recordings").json()["data"]["items"]
    assert item["file_link"] == answer.headers["Location"]
    assert item["size"] == len(mp4.content)
    assert float(item["duration"]) == pytest.approx(duration, abs=0.2)
    for path in ("primary", item["id"]):
        url = f"{chromium.url}/v1/sessions/{made['id']}/recordings/{path}/fetch"
        assert requests.get(url, timeout=20).content == mp4.content
    assert requests.get(url.replace(item["id"], "other"), timeout=20).status_code == 404
    assert requests.get(item["file_link"].replace(".mp4", "x.mp4"), timeout=20).status_code == 404
    assert requests.get(item["file_link"], headers={"Origin": "http://evil.example"}, timeout=20).status_code == 403
    (listed,) = chromium("GET", "/v1/sessions").json()["data"]["sessions"]
    assert listed["recording"] is True
    # The pictures are gone, and so is the profile.
    assert [path.name for folder in chromium.profiles() for path in folder.iterdir()] == ["recording.mp4"]


def test_nothing_is_recorded_that_did_not_ask(records: Backend):
    made = records.create()["id"]
    status, message = refusal(records, made)
    assert status == 400
    assert '{"session": {"recording": {"active": true}}}' in message
    assert records("GET", "/v1/sessions").json()["data"]["sessions"][0]["recording"] is False
    assert "--browserless" in refusal(records, records.create(session=RECORDED)["id"])[1]


def test_without_the_encoder_there_is_none(backends: Callable[..., Backend], tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['av'] = None")
    backend = backends(prefix=("env", f"PYTHONPATH={tmp_path}"))  # not forked: it is about how Python starts
    made = backend.create(session=RECORDED)["id"]
    status, message = refusal(backend, made)
    assert status == 400
    assert "pip install 'pytest-anchor[recording]'" in message
    assert backend("GET", "/v1/sessions").json()["data"]["sessions"][0]["recording"] is False
    assert not any(path.name.startswith("recording-") for path in backend.profiles())


def jpeg(path: Path, colour: str, width: int, height: int) -> bytes:
    import av.filter

    graph = av.filter.Graph()
    source = graph.add("color", f"{colour}:size={width}x{height}")
    sink = graph.add("buffersink")
    source.link_to(sink)
    graph.configure()
    with av.open(str(path), "w", format="mjpeg") as image:
        stream = image.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        frame = graph.pull()
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            image.mux(packet)
    return path.read_bytes()


def pictures(folder: Path, *taken: tuple[float, str, int, int]) -> list[Picture]:
    for i, (_, *what) in enumerate(taken):
        jpeg(folder / f"{i}.jpeg", *what)
    return [Picture(when, folder / f"{i}.jpeg", width, height) for i, (when, _, width, height) in enumerate(taken)]


def test_pictures_last_until_the_next_one(tmp_path: Path):
    taken = pictures(tmp_path, (5, "red", 64, 48), (5, "lime", 64, 48), (7.5, "blue", 64, 48), (60, "red", 64, 48))
    encode(taken, 90, tmp_path / "video.mp4", threading.Event())
    duration, seen = frames(tmp_path / "video.mp4")
    assert duration == pytest.approx(90, abs=0.01)
    assert seen == [(0.0, "red"), (0.001, "green"), (2.5, "blue"), (55.0, "red")]


def test_what_cannot_be_encoded(tmp_path: Path):
    given_up = threading.Event()
    with pytest.raises(ValueError, match="shown nothing"):
        encode([], 1, tmp_path / "video.mp4", given_up)
    taken = pictures(tmp_path, (0, "red", 64, 48))
    with pytest.raises(OSError, match="No such file"):
        encode(taken, 1, tmp_path / "nowhere" / "video.mp4", given_up)
    given_up.set()
    with pytest.raises(ValueError, match="has ended"):
        encode(taken, 1, tmp_path / "video.mp4", given_up)


def test_a_recording_that_fails_and_one_that_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without Chromium: its pictures come from the test."""
    picture = jpeg(tmp_path / "picture.jpeg", "red", 64, 48)
    monkeypatch.setattr(module, "KEPT_BYTES", 1)

    async def record() -> None:
        async with aiohttp.ClientSession() as http:
            chromium: Any = SimpleNamespace(http=http, url="ws://127.0.0.1:9/")
            recordings = Recordings(tmp_path)

            async def make(data: bytes) -> module.Recording:
                recording = recordings.start(chromium)
                assert recording
                for _ in range(2):
                    await recording.on_frame(Frame(data, 64, 48))
                await recordings.finish(recording)
                await asyncio.gather(*recordings._making)
                return recording

            bad = await make(b"no picture")
            assert bad.size == 0
            assert bad.failed
            assert "could not be made" in bad.state
            first = await make(picture)
            assert first.size == first.path.stat().st_size
            monkeypatch.setattr(module, "MOST_BYTES", 1)
            second = await make(picture)
            assert len(second._pictures) == 1
            assert (first.size, first.path.exists()) == (0, False)
            assert "make room" in first.state
            assert second.size
            recordings.give_up()
            late = recordings.start(chromium)
            assert late
            await recordings.finish(late)
            assert not late.size
            await recordings.close()

    in_thread(record())
