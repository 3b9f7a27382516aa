"""The tea shop, served on localhost while its tests run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.cookies import SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from string import Template
from threading import Thread
from typing import ClassVar
from urllib.parse import parse_qs

import pytest

SITE = Path(__file__).parent / "site"
PRICES = {"Assam": 450, "Darjeeling": 700}  # cents a bag


@pytest.fixture(scope="session")
def base_url() -> Iterator[str]:
    with ThreadingHTTPServer(("localhost", 0), Shop) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


class Shop(BaseHTTPRequestHandler):
    """Serves `site/`, and keeps a basket for each visitor and the messages of the chat."""

    visitors: ClassVar = count(1)
    baskets: ClassVar[dict[str, dict[str, int]]] = {}
    messages: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if self.path == "/":
            total = f"€ {self.cents / 100:.2f}" if self.basket else "empty"
            self.answer("text/html", Template((SITE / "shop.html").read_text()).substitute(basket=total))
        elif self.path == "/chat":
            self.answer("text/html", (SITE / "chat.html").read_text())
        elif self.path == "/invoice":
            rows = [f"{tea},{bags},{PRICES[tea] * bags / 100:.2f}" for tea, bags in self.basket.items()]
            self.answer(
                "text/csv", "\n".join(["tea,bags,euros", *rows]), Content_Disposition="attachment; filename=invoice.csv"
            )
        elif self.path == "/messages":
            self.answer("application/json", json.dumps(self.messages))
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.path == "/messages":
            self.messages.append(text)
            self.answer("application/json", "")
            return
        form = parse_qs(text)
        visitor = self.visitor or str(next(self.visitors))
        basket = self.baskets.setdefault(visitor, dict.fromkeys(PRICES, 0))
        basket[form["tea"][0]] += int(form["bags"][0])
        self.send_response(303)
        self.send_header("Location", "/")
        self.send_header("Set-Cookie", f"visitor={visitor}; HttpOnly; SameSite=Lax")
        self.end_headers()

    @property
    def visitor(self) -> str:
        cookies = SimpleCookie(self.headers["Cookie"])
        return cookies["visitor"].value if "visitor" in cookies else ""

    @property
    def basket(self) -> dict[str, int]:
        return {tea: bags for tea, bags in self.baskets.get(self.visitor, {}).items() if bags}

    @property
    def cents(self) -> int:
        return sum(PRICES[tea] * bags for tea, bags in self.basket.items())

    def answer(self, kind: str, text: str, **headers: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
