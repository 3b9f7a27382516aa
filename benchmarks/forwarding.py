"""What it costs that the test machine's localhost is forwarded, beside a browser that reaches it itself."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from measure import ROOT, Figure

sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "forwarding")]

from elsewhere import Elsewhere, Relay
from servers import Servers

from pytest_anchor.broker.forwarding import Forwarding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

FAR = 0.08  # seconds to a browser elsewhere and back
HOSTS = ("localhost", "127.0.0.1")
ROUNDS = 5
SMALL, SMALL_ROUNDS = 10, 20  # fetches in a row: few, so that a round is undisturbed at times on a busy machine, too
MEGABYTES = 20

SCRIPTS = {
    "fetch": f"for (let i = 0; i < {SMALL}; i++) await (await fetch('/hello?' + Math.random())).text()",
    "images": """await Promise.all(Array.from({length: 100}, () => new Promise(done => {
        const image = new Image(); image.onload = done; image.src = '/pixel.png?' + Math.random() })))""",
    "down": f"await (await fetch('/big?mb={MEGABYTES}')).arrayBuffer()",
    "up": f"await (await fetch('/upload', {{method: 'POST', body: new Uint8Array({MEGABYTES} << 20).fill(65)}})).text()",
}


class _Pages(NamedTuple):
    """Pages that have been to the server: by forwarding, and directly."""

    forwarding: Forwarding
    forwarded: Page
    direct: Page


@contextmanager
def _browsers(playwright: Any, servers: Servers, delay: float) -> Iterator[_Pages]:
    """A browser that is forwarded to, and one that reaches the server itself, as far away."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        near = Elsewhere(isolated=False)
        stack.callback(near.close)
        there, port = near, servers.port
        if delay:
            there, relay = Elsewhere(delay / 2), Relay(servers.port, delay=delay / 2)
            stack.callback(there.close)
            stack.callback(relay.close)
            port = relay.port
        forwarding = Forwarding(HOSTS, Path(folder))
        stack.callback(forwarding.close)
        urls = there.create(), near.create()
        if problem := forwarding.attach("forwarded", urls[0], 60):
            raise RuntimeError(problem)
        made = [playwright.chromium.connect_over_cdp(url).new_page() for url in urls]
        made[0].goto(f"{servers.url}/hello")
        made[1].goto(f"http://127.0.0.1:{port}/hello")
        yield _Pages(forwarding, *made)
        for page in made:
            page.context.browser.close()


def _compare(pages: _Pages, name: str, rounds: int = ROUNDS) -> tuple[float, float]:
    """The least milliseconds that a script took in either, one after the other."""
    script = f"async () => {{ const start = performance.now(); {SCRIPTS[name]}; return performance.now() - start }}"
    times = [(pages.forwarded.evaluate(script), pages.direct.evaluate(script)) for _ in range(rounds + 1)]
    return min(one for one, _ in times[1:]), min(one for _, one in times[1:])


def _cpu(forwarding: Forwarding) -> float:
    """The milliseconds of CPU that the process of the forwarding has had."""
    fields = Path(f"/proc/{forwarding.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1000


def _peak(forwarding: Forwarding) -> float:
    """The MB that it has had at most."""
    status = Path(f"/proc/{forwarding.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def figures() -> Iterator[Figure]:
    """Requests and bytes at no distance and far away, forwarded and direct."""
    from playwright.sync_api import sync_playwright

    near: dict[str, float] = {}
    with sync_playwright() as playwright, Servers() as servers:
        for delay in (0.0, FAR):
            where = f"{delay * 1000:.0f} ms away" if delay else "near"
            with _browsers(playwright, servers, delay) as pages:
                before = _cpu(pages.forwarding)
                forwarded, direct = (one / SMALL for one in _compare(pages, "fetch", SMALL_ROUNDS))
                cpu = (_cpu(pages.forwarding) - before) / SMALL / (SMALL_ROUNDS + 1)
                if delay:
                    trips = (forwarded - near["fetch"]) / (delay * 1000)
                    value, aim = f"{trips:.2f} round trips", "1.2 or less"
                else:
                    near["fetch"] = forwarded
                    value, aim = f"+{forwarded - direct:.2f} ms", "+2 ms or less"
                yield Figure(
                    f"a fetch that is forwarded, {where}",
                    value,
                    aim,
                    f"{_times(forwarded, direct)}; {cpu:.2f} ms of CPU",
                )
                forwarded, direct = _compare(pages, "images")
                yield Figure(f"100 images at once, {where}", f"{forwarded / direct:.2f}", "", _times(forwarded, direct))
                for name in ("down", "up"):
                    before = _cpu(pages.forwarding)
                    forwarded, direct = (one / MEGABYTES for one in _compare(pages, name, 2))
                    cpu = (_cpu(pages.forwarding) - before) / MEGABYTES / 3
                    title = f"each MB of {MEGABYTES} MB {name}, {where}"
                    detail = f"{_times(forwarded, direct)}; {cpu:.1f} ms of CPU"
                    yield Figure(title, f"+{forwarded - direct:.1f} ms", "", detail)
                if Path("/proc/self").is_dir():
                    peak = f"{_peak(pages.forwarding):.0f} MB"
                    yield Figure(
                        f"memory of the process that forwards, {where}", peak, "", "at most, with all of the above"
                    )


def _times(forwarded: float, direct: float) -> str:
    return f"{forwarded:.2f} ms against {direct:.2f} ms"
