"""An MP4 of pictures that were taken at any time."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from pathlib import Path

LARGEST = 1920  # pixels of a side
_TICKS = 1000  # a second
# Pages stand still and have sharp edges: what costs the encoder little is enough.
_OPTIONS = {"preset": "veryfast", "tune": "stillimage", "crf": "26", "bf": "0", "threads": "1"}


@dataclass(frozen=True)
class Picture:
    """A JPEG in a file; when it was taken, in seconds, and the size of the viewport in CSS pixels."""

    time: float
    path: Path
    width: int
    height: int


def encode(pictures: Sequence[Picture], duration: float, path: Path, given_up: threading.Event) -> None:
    """Write *pictures* to *path* as H.264, each shown until the next one, the last until *duration* is over.

    All get the size of the largest of them, with black around smaller ones.

    :raises ImportError: PyAV is missing.
    :raises ValueError: there is no picture, or it was *given_up*.
    :raises OSError: it cannot be written; PyAV's errors are of this kind, too.
    """
    import av

    if not pictures:
        raise ValueError("the session has shown nothing")
    width, height = (_even(max(getattr(each, side) for each in pictures)) for side in ("width", "height"))
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as video:
        stream = video.add_stream("libx264", rate=_TICKS, options=_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS)
        fit = _Fit(width, height)
        start, now = pictures[0].time, -1
        frame = None
        for picture in pictures:
            if given_up.is_set():
                raise ValueError("the backend has ended")
            frame = fit(picture.path.read_bytes())
            now = max(now + 1, round((picture.time - start) * _TICKS))
            _write(video, stream, frame, now)
        # The last picture once more: MP4 knows how long a picture lasts by the next one.
        _write(video, stream, frame, max(now + 1, round(duration * _TICKS)))
        _write(video, stream, None, 0)


def _write(video: Any, stream: Any, frame: Any, pts: int) -> None:
    if frame is not None:
        frame.pts, frame.time_base = pts, Fraction(1, _TICKS)
    for packet in stream.encode(frame):
        video.mux(packet)


class _Fit:
    """Makes a frame of a JPEG, as large as it can be within *width* and *height*, and black around it."""

    def __init__(self, width: int, height: int) -> None:
        self._size = width, height
        self._of: tuple[int, int] = (0, 0)
        self._graph: Any = None

    def __call__(self, jpeg: bytes) -> Any:
        import av

        (frame,) = av.CodecContext.create("mjpeg", "r").decode(av.Packet(jpeg))
        if (frame.width, frame.height) != self._of:
            self._of = frame.width, frame.height
            self._graph = self._build(frame)
        frame.pts = 0
        self._graph.push(frame)
        return self._graph.pull()

    def _build(self, frame: Any) -> Any:
        import av.filter

        width, height = self._size
        graph = av.filter.Graph()
        chain = [
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, _TICKS)
            ),
            graph.add("scale", f"{width}:{height}:force_original_aspect_ratio=decrease:out_range=tv"),
            graph.add("pad", f"{width}:{height}:(ow-iw)/2:(oh-ih)/2"),
            graph.add("format", "yuv420p"),
            graph.add("buffersink"),
        ]
        for source, sink in pairwise(chain):
            source.link_to(sink)
        graph.configure()
        return graph


def _even(pixels: int) -> int:
    return max(2, min(LARGEST, pixels + pixels % 2))
