"""The servers of a suite that starts its own, on this machine's loopback only."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import socket
import ssl
import struct
import tempfile
import threading
import zlib
from pathlib import Path

from aiohttp import WSMsgType, web
from certificates import make_certificate

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
BIG = hashlib.shake_128(b"big").digest(1 << 20)  # repeated for large bodies

PAGES = {
    "/page": """<!doctype html><title>page</title><link rel=stylesheet href=style.css><img id=i src=pixel.png>
        <script src=script.js></script><p>text</p>""",
    "/form": """<form id=f method=post action=/login enctype=multipart/form-data>
        <input name=name value=jürgen><input type=file name=file id=file><button>go</button></form>""",
    "/frames": """<iframe id=a src=/frame></iframe><iframe id=s sandbox=allow-scripts src=/frame></iframe>
        <iframe id=d srcdoc="<img src=/pixel.png onload='parent.loaded=1'>"></iframe>""",
    "/frame": "<script>parent.postMessage('from ' + location.pathname, '*')</script>frame",
    "/images": "".join(f"<img src=/pixel.png?{number}>" for number in range(100)),
    "/popup": "<script>opener && opener.postMessage('popup', '*')</script>popup",
    "/csp": "<img id=i src=/pixel.png><script>window.inline = 1</script>",
    "/silent": """<title>silent</title><script src=script.js></script><img id=i src=pixel.png><iframe src=/frame></iframe>
        <script>new Worker(URL.createObjectURL(new Blob([`fetch('${location.origin}/hello')
        .then(r => r.text()).then(postMessage)`]))).onmessage = e => { document.title = e.data }</script>""",
    "/download": "<a id=a href=/attachment>get</a><a id=b href=/attachment download=mine.bin>get</a>",
}
HEADERS = {
    "/csp": {"Content-Security-Policy": "script-src 'none'"},
    "/silent": {"Referrer-Policy": "no-referrer"},
}
SCRIPTS = {
    "/script.js": "window.ran = 1",
    "/worker.js": "importScripts('/imported.js'); fetch('/hello').then(r => r.text()).then(t => postMessage(t + imported))",
    "/imported.js": "self.imported = ' imported'",
    "/module.js": "import { name } from './imported-module.js'; fetch('/hello').then(r => r.text()).then(t => postMessage(t + name))",
    "/imported-module.js": "export const name = ' module'",
    "/shared.js": "onconnect = e => fetch('/hello').then(r => r.text()).then(t => e.ports[0].postMessage(t))",
    "/service.js": """self.addEventListener('activate', e => e.waitUntil(clients.claim()));
        self.addEventListener('install', e => e.waitUntil(caches.open('c').then(c => c.add('/hello')).then(() => skipWaiting())));
        self.addEventListener('fetch', e => {
            if (e.request.url.endsWith('/made-up')) e.respondWith(new Response('made up'));
            if (e.request.url.endsWith('/stored')) e.respondWith(caches.match('/hello'));
            if (e.request.url.endsWith('/passed-on')) e.respondWith(fetch('/hello'));
        });""",
    "/socket-worker.js": """const s = new WebSocket(`ws://${location.host}/echo`);
        s.onopen = () => s.send('worker'); s.onmessage = e => postMessage(e.data)""",
}


class Servers:
    """Several ports with the same pages; ``requests`` is what arrived: method, path and headers."""

    def __init__(self) -> None:
        self.requests: list[web.Request] = []
        self.bodies: list[tuple[int, str]] = []  # size and SHA-256 of what was uploaded
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._running: dict[int, tuple[web.AppRunner, socket.socket]] = {}
        self._connections: dict[asyncio.Transport, socket.socket] = {}

    def __enter__(self) -> Servers:
        self._thread.start()
        self.port = self.start()
        self.other_port = self.start()
        self.v6_port = self.start(host="::1")
        self.url = f"http://localhost:{self.port}"
        self.other = f"http://127.0.0.1:{self.other_port}"
        self.neighbour = f"http://localhost:{self.other_port}"
        self.v6 = f"http://[::1]:{self.v6_port}"
        return self

    def __exit__(self, *_: object) -> None:
        for port in list(self._running):
            self.stop(port)
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def start(self, port: int = 0, host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> int:
        async def start() -> int:
            runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            self._note_connections(runner.server)
            listener = self._listen(host, port)
            await web.SockSite(runner, listener, ssl_context=context).start()
            listening: int = runner.addresses[0][1]
            self._running[listening] = runner, listener
            return listening

        return asyncio.run_coroutine_threadsafe(start(), self._loop).result(10)

    def _listen(self, host: str, port: int) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        while (listener := socket.create_server((host, port), family=family)).getsockname()[1] in self._running:
            listener.close()  # its number is another server's at the other address
        return listener

    def start_https(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            _, context = make_certificate(Path(folder))
        return f"https://localhost:{self.start(context=context)}"

    def stop(self, port: int) -> None:
        runner, listener = self._running.pop(port)

        async def stop() -> None:
            self._loop.remove_reader(listener)
            await asyncio.sleep(0.01)  # what is accepted becomes a connection, as it cannot once its server is closed
            await runner.cleanup()

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)

    def _note_connections(self, server: web.Server) -> None:
        made = server.connection_made

        def note(handler: web.RequestHandler, transport: asyncio.Transport) -> None:
            self._connections[transport] = transport.get_extra_info("socket")
            made(handler, transport)

        server.connection_made = note

    async def _cut(self) -> None:
        """Cut what the servers leave: TLS handshakes, and connections that wait for a browser to read."""
        own = {asyncio.current_task()}
        while (tasks := asyncio.all_tasks() - own) or any(one.fileno() >= 0 for one in self._connections.values()):
            for transport, one in self._connections.items():
                if one.fileno() >= 0:  # in Python 3.11.2, TLS cannot abort what is closed
                    transport.abort()
            await asyncio.sleep(0.01)  # a task that has not begun would close nothing
            for task in tasks:
                task.cancel()

    def count(self, path: str, method: str = "") -> int:
        return sum(one.path == path and method in ("", one.method) for one in self.requests)

    def last(self, path: str) -> web.Request:
        return next(one for one in reversed(self.requests) if one.path == path)

    def _app(self) -> web.Application:
        @web.middleware
        async def note(request: web.Request, handler):
            self.requests.append(request)
            return await handler(request)

        app = web.Application(client_max_size=1 << 30, middlewares=[note])
        for name in dir(self):
            if name.startswith("do_"):
                app.router.add_route("*", f"/{name[3:].replace('_', '-')}", getattr(self, name))
        app.router.add_route("*", "/{path:.*}", self.static)
        return app

    async def static(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path in PAGES:
            return web.Response(text=PAGES[path], content_type="text/html", headers=HEADERS.get(path))
        if path in SCRIPTS:
            return web.Response(
                text=SCRIPTS[path], content_type="text/javascript", headers={"Access-Control-Allow-Origin": "*"}
            )
        if path == "/style.css":
            return web.Response(
                text="p { color: rgb(1, 2, 3); background: url(pixel.png?css) }", content_type="text/css"
            )
        if path == "/pixel.png":
            return web.Response(body=PIXEL, content_type="image/png")
        return web.Response(status=404, text="nothing here")

    async def do_hello(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(text="hello")

    async def do_echo_request(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        cookies, headers = dict(request.cookies), dict(request.headers)
        return web.json_response({"method": request.method, "size": len(body), "cookies": cookies, "headers": headers})

    async def do_login(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        answer = web.Response(status=302, headers={"Location": "/home"})
        answer.set_cookie("user", str(form["name"]).encode().hex(), httponly=True, samesite="Lax")
        if isinstance(file := form.get("file"), web.FileField) and file.filename:
            content = file.file.read()
            self.bodies.append((len(content), hashlib.sha256(content).hexdigest()))
        return answer

    async def do_home(self, request: web.Request) -> web.StreamResponse:
        name = bytes.fromhex(request.cookies.get("user", "")).decode()
        return web.Response(
            body=f"<title>home of {name}</title>".encode(), headers={"Content-Type": "text/html; charset=utf-8"}
        )

    async def do_latin1(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(
            body="<title>grün</title>".encode("latin-1"), headers={"Content-Type": "text/html; charset=iso-8859-1"}
        )

    async def do_hop(self, request: web.Request) -> web.StreamResponse:
        number = int(request.query["n"])
        answer = web.Response(status=302, headers={"Location": f"/hop?n={number - 1}" if number else "/echo-request"})
        answer.set_cookie(f"hop{number}", "1")
        return answer

    async def do_keep_method(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": "/echo-request"})

    async def do_set_cookie(self, request: web.Request) -> web.StreamResponse:
        answer = web.Response(text="set", headers=_cors(request))
        _set_cookies(request, answer)
        return answer

    async def do_status(self, request: web.Request) -> web.StreamResponse:
        return web.Response(
            status=int(request.query["s"]), reason=request.query.get("reason"), text=request.query.get("t", "")
        )

    async def do_open(self, request: web.Request) -> web.StreamResponse:
        """What any origin may read, with cookies."""
        cors = {
            **_cors(request),
            "Access-Control-Allow-Methods": "PUT, DELETE",
            "Access-Control-Allow-Headers": "x-mine",
        }
        return web.json_response({"method": request.method, "cookies": dict(request.cookies)}, headers=cors)

    async def do_etag(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("If-None-Match") == '"1"':
            return web.Response(status=304, headers={"ETag": '"1"'})
        return web.Response(text="tagged", headers={"ETag": '"1"', "Cache-Control": "no-cache"})

    async def do_kept(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(text=str(self.count("/kept")), headers={"Cache-Control": "max-age=600"})

    async def do_big(self, request: web.Request) -> web.StreamResponse:
        size = int(request.query["mb"])
        answer = web.StreamResponse(
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(size << 20)}
        )
        if "name" in request.query:
            answer.headers["Content-Disposition"] = f'attachment; filename="{request.query["name"]}"'
        if range_ := request.headers.get("Range"):
            start, _, end = range_.removeprefix("bytes=").partition("-")
            part = (BIG * size)[int(start) : int(end) + 1 if end else None]
            content_range = f"bytes {start}-{int(start) + len(part) - 1}/{size << 20}"
            return web.Response(status=206, body=part, headers={"Content-Range": content_range})
        await answer.prepare(request)
        for _ in range(size):
            await answer.write(BIG)
        return answer

    async def do_sound_wav(self, request: web.Request) -> web.StreamResponse:
        samples = b"\0\0" * 8000 * 60
        head = (
            b"RIFF"
            + struct.pack("<I", 36 + len(samples))
            + b"WAVEfmt "
            + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
        )
        body = head + b"data" + struct.pack("<I", len(samples)) + samples
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {
            "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}",
            "Accept-Ranges": "bytes",
            "Content-Type": "audio/wav",
        }
        return web.Response(status=206, body=body[start:], headers=headers)

    async def do_upload(self, request: web.Request) -> web.StreamResponse:
        digest, size = hashlib.sha256(), 0
        async for chunk in request.content.iter_chunked(1 << 20):
            digest.update(chunk)
            size += len(chunk)
        self.bodies.append((size, digest.hexdigest()))
        return web.json_response({"size": size, "digest": digest.hexdigest()})

    async def do_attachment(self, _request: web.Request) -> web.StreamResponse:
        headers = {"Content-Disposition": "attachment; filename*=UTF-8''gr%C3%BCn.bin"}
        return web.Response(body=BIG, headers=headers, content_type="application/octet-stream")

    async def do_encoded(self, request: web.Request) -> web.StreamResponse:
        text, how = b"encoded " * 1000, request.query["how"]
        body = gzip.compress(text) if how == "gzip" else zlib.compress(text)
        return web.Response(body=body, headers={"Content-Encoding": how, "Content-Type": "text/plain"})

    async def do_secret(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") == "Basic dXNlcjpwYXNz":  # user:pass
            return web.Response(text="secret")
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'}, text="who?")

    async def do_endless(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        while True:
            await answer.write(b"data: more\n\n")
            await asyncio.sleep(0.05)

    async def do_never(self, _request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(600)
        return web.Response()

    async def do_slowly(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await answer.prepare(request)
        for _ in range(8):
            await answer.write(b"piece")
            await asyncio.sleep(0.1)
        return answer

    async def do_echo(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=("second", "third"), max_msg_size=0)
        _set_cookies(request, socket)
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
            elif message.data == "close":
                await socket.close(code=4321, message=b"bye")
            elif message.data == "cut":
                assert request.transport
                request.transport.abort()
            elif message.data == "who":
                headers = request.headers
                await socket.send_str(f"{headers.get('Origin')} {headers.get('Cookie', '')}")
            else:
                await socket.send_str(message.data)
        self.closed_with = socket.close_code
        return socket

    async def do_events(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", **_cors(request)})
        _set_cookies(request, answer)
        await answer.prepare(request)
        last = int(request.headers.get("Last-Event-ID", "0"))
        await answer.write(
            f"retry: 50\nid: {last + 1}\ndata: {last + 1}\n\n: comment\n\nevent: own\ndata: a\r\ndata: b\n\n".encode()
        )
        return answer


def _set_cookies(request: web.Request, answer: web.StreamResponse) -> None:
    for text in request.query.getall("c", ()):
        answer.headers.add("Set-Cookie", text)


def _cors(request: web.Request) -> dict[str, str]:
    origin = request.headers.get("Origin")
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Credentials": "true"} if origin else {}
