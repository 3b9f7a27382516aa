"""What the record and the safety around a session cost, on a server that answers at once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import requests
from measure import Figure, client_for, local_server, paired

from pytest_anchor.session import AnchorSessionFactory

if TYPE_CHECKING:
    from collections.abc import Iterator

PAIRS = 40
ROUNDS = 15


def figures() -> Iterator[Figure]:
    """Create and end through the factory against hand-written calls."""
    with local_server("--cap", "1000") as env, tempfile.TemporaryDirectory() as folder:
        url, key = env["ANCHORBROWSER_BASE_URL"], env["ANCHORBROWSER_API_KEY"]
        client = client_for(env, Path(folder, ".pytest_anchor", "bench"))
        factory = AnchorSessionFactory(client, {}, lambda: "benchmark")
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
            ("a bare kept-alive `requests.Session`", kept_alive, "+1.2 ms or less"),
            ("one-off `requests` calls", one_off, "1 or less"),
        ):
            ours, theirs = paired(through_factory, other, ROUNDS)
            yield Figure(
                f"create + end through the factory, against {name}",
                f"{ours / theirs:.2f}; {(ours - theirs) / PAIRS * 1000:+.2f} ms",
                aim,
                f"{ours / PAIRS * 1000:.2f} ms against {theirs / PAIRS * 1000:.2f} ms",
            )
        client.leave()
