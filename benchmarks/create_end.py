"""What the record and the safety around a session cost, on a server that answers at once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import requests
from measure import Figure, local_server, paired

from pytest_anchor.session import AnchorSessionFactory, Owner
from pytest_anchor.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

PAIRS = 40
ROUNDS = 15


def figures() -> Iterator[Figure]:
    """Create and end through the factory against hand-written calls."""
    with local_server("--cap", "1000") as env, tempfile.TemporaryDirectory() as folder:
        url, key = env["ANCHORBROWSER_BASE_URL"], env["ANCHORBROWSER_API_KEY"]
        owner = Owner(
            Settings(
                run_id="bench",
                folder=Path(folder, ".pytest_anchor", "bench"),
                owner="main",
                base_url=url,
                api_key=key,
                local=False,
                chromium="",
                on_leak="fail",
                sweep_timeout=60.0,
                reaper=False,
            )
        )
        factory = AnchorSessionFactory(owner, {}, lambda: "benchmark")
        kept = requests.Session()
        kept.headers["anchor-api-key"] = key

        def through_factory() -> None:
            for _ in range(PAIRS):
                factory().end()

        def bare(http: requests.Session) -> None:
            created = http.post(f"{url}/v1/sessions", json={}, timeout=10).json()["data"]["id"]
            http.delete(f"{url}/v1/sessions/{created}", timeout=10).raise_for_status()

        def kept_alive() -> None:
            for _ in range(PAIRS):
                bare(kept)

        def one_off() -> None:
            for _ in range(PAIRS):
                for_once = requests.Session()
                for_once.headers["anchor-api-key"] = key
                created = for_once.post(f"{url}/v1/sessions", json={}, timeout=10).json()["data"]["id"]
                for_once.close()
                for_once = requests.Session()
                for_once.headers["anchor-api-key"] = key
                for_once.delete(f"{url}/v1/sessions/{created}", timeout=10).raise_for_status()
                for_once.close()

        for name, other, aim in (
            ("a bare kept-alive `requests.Session`", kept_alive, "1.15 or less"),
            ("one-off `requests` calls", one_off, "less than 1"),
        ):
            ours, theirs = paired(through_factory, other, ROUNDS)
            yield Figure(
                f"create + end through the factory, against {name}",
                f"{ours / theirs:.2f}",
                aim,
                f"{ours / PAIRS * 1000:.2f} ms against {theirs / PAIRS * 1000:.2f} ms",
            )
        owner.close()
